"""The engine's log: silent by itself, and on request it says what was loaded and where the time went."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.log import LOGGER

FEW = GenerationConfig(max_new_tokens=4)


@pytest.mark.onnx
def test_loading_and_requests(tiny_bundle: Path, speech: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "salmonrun")
    engine = Engine.load(tiny_bundle, threads=1, verify=False)
    (loaded,) = caplog.records
    assert (loaded.name, loaded.levelno) == ("salmonrun", logging.INFO)
    assert f": {tiny_bundle} (tiny): encoders " in loaded.getMessage()
    assert "decoder onnx on cpu, 1 threads, onnxruntime 1." in loaded.getMessage()

    result = engine.generate(speech, config=FEW)
    record = caplog.records[-1]
    assert record.levelno == logging.DEBUG
    assert record.getMessage().startswith("1.3 s of audio: 4 tokens, length; ms: prompt ")
    assert all(
        f"{stage} {1000 * seconds:.1f}" in record.getMessage() for stage, seconds in result.timings.stages.items()
    )

    segments, _ = engine.transcribe(speech, generation=FEW)
    tokens = sum(len(segment.token_ids) for segment in segments)
    assert " windows, " in caplog.records[-1].getMessage()
    assert f": {tokens} tokens; ms: " in caplog.records[-1].getMessage()


def test_it_is_silent_by_itself() -> None:
    assert [type(handler) for handler in LOGGER.handlers if type(handler) is logging.NullHandler]
    assert LOGGER.level == logging.NOTSET  # an app's own settings hold


@pytest.mark.parametrize(("option", "loaded", "requests"), [([], 0, 0), (["-v"], 1, 0), (["-vv"], 1, 1)])
def test_verbose(tiny_bundle: Path, speech: Path, option: list[str], loaded: int, requests: int) -> None:
    argv = ["transcribe", str(tiny_bundle), str(speech), "--max-new-tokens", "3", *option]
    done = subprocess.run([sys.executable, "-m", "salmonrun", *argv], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len([line for line in lines if line.startswith("salmonrun: loaded ")]) == loaded
    assert len([line for line in lines if line.startswith("salmonrun: 1.3 s of audio: 3 tokens")]) == requests
    assert len(lines) == loaded + requests + 1  # and the summary
