"""What comes in is of the right type and in range, or is refused in a line that names it, before any work."""

import gc
import math
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salmonrun.export.options import ExportOptions
from salmonrun.runtime import EndpointConfig, Engine, GenerationConfig, Limits, StreamConfig, TranscribeConfig
from salmonrun.runtime.cores import usable_cores
from salmonrun.runtime.errors import ClosedError, ConfigError, SalmonrunError
from salmonrun.runtime.latency.config import LatencyConfig
from salmonrun.runtime.latency.sampling import StopRule

WHOLE, NUMBER, YES_OR_NO = "expected a whole number", "expected a finite number", "expected True or False"

SETTINGS: list[tuple[type, str, Any, str]] = [
    *((GenerationConfig, "max_new_tokens", value, WHOLE) for value in ("5", 5.0, None, True, math.nan)),
    *((GenerationConfig, "num_beams", value, WHOLE) for value in (True, "2", 2.5, (2,))),
    (GenerationConfig, "min_new_tokens", 0.0, WHOLE),
    (GenerationConfig, "length_penalty", "1", NUMBER),
    (GenerationConfig, "length_penalty", math.inf, NUMBER),
    *((GenerationConfig, "early_stopping", value, "expected True, False or 'never'") for value in (1, "always", None)),
    *((GenerationConfig, "do_sample", value, YES_OR_NO) for value in ("yes", 1, None, np.True_)),
    *((GenerationConfig, "temperature", value, NUMBER) for value in (math.inf, math.nan, "1", None, True, 10**400)),
    *((GenerationConfig, "top_k", value, WHOLE) for value in (1.5, "5", None, False)),
    (GenerationConfig, "top_p", "0.5", NUMBER),
    (GenerationConfig, "nothing_threshold", 1.5, "expected a probability from 0 to 1"),
    (GenerationConfig, "nothing_threshold", "0.5", NUMBER),
    (GenerationConfig, "seed", 1.0, "expected a whole number or None"),
    (GenerationConfig, "repetition_penalty", True, NUMBER),
    (GenerationConfig, "no_repeat_ngram_size", "3", WHOLE),
    (GenerationConfig, "stop_strings", "stop", "expected a tuple (each str)"),
    (GenerationConfig, "stop_strings", ["stop"], "expected a tuple (each str)"),
    (GenerationConfig, "stop_strings", ("a", 3), "has 3; expected str"),
    (GenerationConfig, "stop_token_ids", 2, "expected a tuple (each a whole number) or None"),
    (GenerationConfig, "stop_token_ids", (2, "3"), "has '3'; expected a whole number"),
    (Limits, "max_prompt_chars", "many", WHOLE),
    (Limits, "max_prompt_chars", 0, "at least 1"),
    (Limits, "max_beams", 2.0, WHOLE),
    (Limits, "max_beams", -1, "at least 1"),
    (Limits, "max_cache_mib", "64", "expected a whole number or None"),
    (Limits, "max_cache_mib", 0, "at least 1"),
    (Limits, "silence_dbfs", math.nan, "expected a finite number or None"),
    (StreamConfig, "policy", "blocks", "expected 'auto', 'agreement' or 'block'"),
    (StreamConfig, "policy", None, "expected 'auto', 'agreement' or 'block'"),
    (StreamConfig, "update_s", "0.5", NUMBER),
    (StreamConfig, "update_s", math.inf, NUMBER),
    (StreamConfig, "update_s", 0, "above 0"),
    (StreamConfig, "block_s", "0.32", "expected a finite number or None"),
    (StreamConfig, "lookback_s", True, "expected a finite number or None"),
    (StreamConfig, "hypotheses", 1.5, WHOLE),
    (StreamConfig, "hypotheses", 0, "at least 1"),
    (StreamConfig, "hold_back", -1, "at least 0"),
    (StreamConfig, "hold_back", None, WHOLE),
    (StreamConfig, "endpoint", True, "expected EndpointConfig or None"),
    (StreamConfig, "endpoint", {"vad": "energy"}, "expected EndpointConfig or None"),
    (StreamConfig, "max_lag_s", math.nan, "expected a finite number or None"),
    (EndpointConfig, "silence_s", None, NUMBER),
    (EndpointConfig, "pause_s", "1", NUMBER),
    (EndpointConfig, "longest_s", math.inf, NUMBER),
    (EndpointConfig, "margin_s", -0.1, "at least 0"),
    (EndpointConfig, "vad", "webrtc", "expected 'auto', 'silero' or 'energy'"),
    (TranscribeConfig, "window_s", "20", NUMBER),
    (TranscribeConfig, "batch_size", 2.0, WHOLE),
    (TranscribeConfig, "batch_size", True, WHOLE),
    (TranscribeConfig, "overlap_s", None, NUMBER),
    (TranscribeConfig, "part_pause_s", math.nan, NUMBER),
    (TranscribeConfig, "vad", 3, "expected 'auto', 'silero' or 'energy'"),
    (LatencyConfig, "protocols", "request", "expected a tuple"),
    (LatencyConfig, "protocols", ("requests",), "has 'requests'; expected 'reference', 'request', 'stream' or 'load'"),
    (LatencyConfig, "lengths_s", (2.0, "5"), "has '5'; expected a finite number"),
    (LatencyConfig, "num_beams", (1, 1.5), "has 1.5; expected a whole number"),
    (LatencyConfig, "num_beams", 4, "expected a tuple"),
    (LatencyConfig, "tokens", "32", WHOLE),
    (LatencyConfig, "paced", "realtime", YES_OR_NO),
    (LatencyConfig, "load_of", "files", "expected 'streams' or 'requests'"),
    (LatencyConfig, "task", 3, "expected str or None"),
    (LatencyConfig, "rule", 0.05, "expected StopRule"),
    (ExportOptions, "encoder_precision", "int4", "expected 'fp32', 'fp16', 'bf16' or 'int8'"),
    (ExportOptions, "llm_precision", "fp16", "expected 'fp32', 'int8', 'int4' or 'nf4'"),
    (ExportOptions, "target", "tpu", "expected 'cpu' or 'cuda'"),
    (ExportOptions, "window", "short", "expected 'padded', 'trimmed' or None"),
    (ExportOptions, "max_length", 1024.0, WHOLE),
    (ExportOptions, "parity_budget", math.inf, NUMBER),
    (ExportOptions, "token_agreement", "90 %", NUMBER),
    (ExportOptions, "token_agreement", 90, "from 0 to 1"),
    (ExportOptions, "lora_scale", "2", "expected a finite number or None"),
]


@pytest.mark.parametrize(("settings", "name", "value", "message"), SETTINGS)
def test_settings(settings: type, name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**{name: value})
    assert name in str(caught.value)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_rule_of_another_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision is '5 %'; expected a finite number"):
        LatencyConfig(rule=StopRule(precision="5 %"))  # type: ignore[arg-type]


def test_whole_numbers_do_for_others_and_numpys_for_pythons() -> None:
    config = GenerationConfig(do_sample=True, temperature=2, top_k=np.int64(5), top_p=np.float32(0.5))  # type: ignore[arg-type]
    assert (config.temperature, config.top_k, config.top_p) == (2, 5, 0.5)


REQUEST: list[tuple[dict[str, Any], str]] = [
    ({"task": 3}, "task is 3; expected str or None"),
    ({"prompt": 3}, "prompt is 3; expected str or None"),
    ({"prompt": b"Hm?"}, "prompt is b'Hm?'; expected str or None"),
    ({"task": "qa", "question": 3}, "question is 3; expected str or None"),
    ({"sample_rate": "16000"}, "sample_rate is '16000'; expected a whole number"),
    ({"sample_rate": 16000.0}, "sample_rate is 16000.0; expected a whole number"),
]
READING: list[tuple[dict[str, Any], str]] = [
    ({"strict": "yes"}, "strict is 'yes'; expected True or False"),
    ({"strict": None}, "strict is None; expected True or False"),
]
CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"config": {"num_beams": 2}}, "config is {'num_beams': 2}; expected GenerationConfig or None"),
    ({"config": GenerationConfig}, "expected GenerationConfig or None"),
    ({"config": StreamConfig()}, "expected GenerationConfig or None"),
    ({"cancel": True}, "cancel is True; expected Event or None"),
]
LONG: list[tuple[dict[str, Any], str]] = [
    ({"config": GenerationConfig()}, "expected TranscribeConfig or None"),
    ({"generation": 3}, "generation is 3; expected GenerationConfig or None"),
    ({"cancel": 0}, "cancel is 0; expected Event or None"),
]
STREAM: list[tuple[dict[str, Any], str]] = [
    ({"config": {}}, "config is {}; expected StreamConfig or None"),
    ({"generation": StreamConfig()}, "expected GenerationConfig or None"),
    ({"sample_rate": None}, "sample_rate is None; expected a whole number"),
]
CALLS = [
    *(("generate", *case) for case in (*REQUEST, *READING, *CONFIGS)),
    *(("generate_iter", *case) for case in (*REQUEST, *READING, *CONFIGS)),
    *(("transcribe", *case) for case in (*REQUEST, *READING, *LONG)),
    *(("stream", *case) for case in (*REQUEST, *STREAM)),
]


@pytest.mark.parametrize(("method", "arguments", "message"), CALLS)
def test_requests(tiny_engine: Engine, speech: Path, method: str, arguments: dict[str, Any], message: str) -> None:
    audio = [] if method == "stream" else [speech]
    with pytest.raises(ConfigError) as caught:
        getattr(tiny_engine, method)(*audio, **arguments)
    assert message in str(caught.value)


def test_listening(tiny_engine: Engine, speech: Path) -> None:
    with (
        pytest.raises(ConfigError, match="sample_rate is '16000'; expected a whole number"),
        tiny_engine.listen(speech, sample_rate="16000"),  # type: ignore[arg-type]
    ):
        pass
    with pytest.raises(ConfigError, match="strict is 1; expected True or False"), tiny_engine.listen(speech, strict=1):  # type: ignore[arg-type]
        pass
    with tiny_engine.listen(speech) as heard:
        for arguments, message in [case for case in (*REQUEST, *CONFIGS) if "sample_rate" not in case[0]]:
            for ask in (heard.ask, heard.ask_iter):
                with pytest.raises(ConfigError) as caught:
                    ask(**arguments)
                assert message in str(caught.value)


LOADING: list[tuple[dict[str, Any], str]] = [
    ({"path": 3}, "path is 3; expected str or PathLike"),
    ({"path": None}, "path is None; expected str or PathLike"),
    ({"path": b"bundle"}, "path is b'bundle'; expected str or PathLike"),
    ({"device": 3}, "device is 3; expected 'auto', 'cpu', 'cuda' or, of several GPUs, 'cuda:1'"),
    ({"device": "tpu"}, "device is 'tpu'; expected 'auto', 'cpu', 'cuda' or, of several GPUs, 'cuda:1'"),
    ({"decoder": "tpu"}, "decoder is 'tpu'; expected 'auto', 'onnx', 'native' or 'torch'"),
    ({"decoder": None}, "decoder is None; expected 'auto', 'onnx', 'native' or 'torch'"),
    ({"threads": "2"}, "threads is '2'; expected a whole number or None"),
    ({"threads": True}, "threads is True; expected a whole number or None"),
    ({"threads": 1.0}, "threads is 1.0; expected a whole number or None"),
    ({"threads": 0}, "threads is 0; it must be at least 1"),
    ({"threads": 100_000}, f"threads is 100000; this process may use {usable_cores()} core"),
    ({"threads": usable_cores() + 1}, f"threads is {usable_cores() + 1}; this process may use {usable_cores()} core"),
    (
        {"verify": "no"},
        "verify is 'no', neither a key nor a file; expected True, False, or a public key of minisign: RW..., or",
    ),
    ({"verify": 0}, "verify is 0; expected True, False, str or PathLike"),
    ({"limits": 3}, "limits is 3; expected Limits or None"),
    ({"limits": {"max_beams": 3}}, "limits is {'max_beams': 3}; expected Limits or None"),
]


@pytest.mark.parametrize(("arguments", "message"), LOADING)
def test_loading(tiny_bundle: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SalmonrunError) as caught:
        Engine.load(**{"path": tiny_bundle, **arguments})
    assert message in str(caught.value)


def test_as_many_threads_as_there_are_cores(tiny_bundle: Path) -> None:
    assert Engine.load(tiny_bundle, threads=usable_cores(), verify=False).report().threads == usable_cores()


def test_a_closed_engine(tiny_bundle: Path, speech: Path) -> None:
    with Engine.load(tiny_bundle, verify=False) as engine:
        model = weakref.ref(engine.model)
        session = weakref.ref(engine.model.encoder.qformer_graph.session)
        running = engine.generate_iter(speech, config=GenerationConfig(max_new_tokens=4))
    requests: list[Callable[[], object]] = [
        lambda: engine.generate(speech),
        lambda: engine.generate_iter(speech),
        lambda: engine.transcribe(speech),
        lambda: engine.stream(),
        lambda: engine.listen(speech).__enter__(),
        engine.report,
        lambda: engine.tasks,
        lambda: engine.bundle,
        engine.__enter__,
    ]
    for request in requests:
        with pytest.raises(ClosedError, match="this engine is closed: load it again"):
            request()
    engine.close()  # again
    assert "".join(running)  # what was accepted before is answered
    del running
    gc.collect()
    assert (model(), session()) == (None, None)


WITHOUT = """
import sys
sys.modules |= dict.fromkeys(["resource", "fcntl", "termios", "pwd", "grp"])
from salmonrun.runtime import *
from salmonrun.runtime import report
report.Path = lambda name: open("/nowhere/status")  # as where there is no /proc
engine = Engine.load(sys.argv[1], verify=False)
assert engine.generate(sys.argv[2], config=GenerationConfig(max_new_tokens=4)).token_ids
assert engine.report().peak_resident_bytes is None
"""


def test_the_engine_runs_without_the_modules_of_unix(tiny_bundle: Path, speech: Path) -> None:
    """As on Windows, and in WebAssembly."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, tiny_bundle, speech], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
