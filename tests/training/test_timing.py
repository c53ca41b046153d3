"""The PyTorch side of `salmonrun latency --baseline`: the same work, counted and timed by a clock told to."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import torch

from salmonrun.runtime.config import GenerationConfig
from salmonrun.training.__main__ import main
from salmonrun.training.checkpoint import load
from salmonrun.training.evaluation import timing
from salmonrun.training.evaluation.timing import Work, greedy, memory_mb, take_time
from salmonrun.training.model.salmonn import SalmonnModel
from tests.helpers.latencies import FakeClock, fake_time

TOKENS = 5


@pytest.fixture
def model(tiny_checkpoint: Path) -> SalmonnModel:
    return load(tiny_checkpoint)


@pytest.fixture
def audio(tmp_path: Path) -> str:
    path = tmp_path / "noise.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 32000), 16000)
    return str(path)


def work(audio: str, protocol: Literal["reference", "request"] = "request", beams: int = 1) -> Work:
    return Work(audio, protocol, "asr", None, TOKENS, beams)


@torch.inference_mode()
def prompted(model: SalmonnModel, audio: str) -> torch.Tensor:
    return model.embed_prompt(model.encode(model.load_audio(audio)), model.prompts.tasks["asr"][0])


def slowed(monkeypatch: pytest.MonkeyPatch, clock: FakeClock, owner: object, name: str, seconds: float) -> list[Any]:
    """Have a function take so long; its calls."""
    plain, calls = getattr(owner, name), list[Any]()

    def slow(*arguments: Any, **options: Any) -> Any:
        calls.append((arguments, options))
        clock.advance(seconds)
        return plain(*arguments, **options)

    monkeypatch.setattr(owner, name, slow)
    return calls


def test_greedy_says_what_transformers_says(model: SalmonnModel, audio: str) -> None:
    embeds = prompted(model, audio)
    with torch.inference_mode():
        found = greedy(model, embeds, 16)
    expected = model.generate_from(embeds, GenerationConfig(16, stop_token_ids=()))
    assert len(expected) == 16
    assert [token for token, _ in found] == expected
    times = [at for _, at in found]
    assert times == sorted(times)


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_tokens_end_nothing(monkeypatch: pytest.MonkeyPatch, model: SalmonnModel, audio: str, beams: int) -> None:
    """A model that says nothing but its stop token is timed over all tokens."""
    (stop, *_) = model.prompts.stop_token_ids
    with torch.no_grad():
        model.llm.get_parameter("lm_head.weight")[stop] *= 100  # by far the largest, up or down
    said: list[int] = []
    plain = SalmonnModel.generate_from

    def listening(self: SalmonnModel, embeds: torch.Tensor, config: GenerationConfig) -> list[int]:
        said.extend(plain(self, embeds, config))
        return said

    monkeypatch.setattr(SalmonnModel, "generate_from", listening)
    sample = take_time(model, work(audio, beams=beams))
    assert len(sample["tpot"]) == (TOKENS - 1 if beams == 1 else 1)
    if beams > 1:
        assert len(said) == TOKENS
        assert stop in said


def test_requests_by_a_clock(monkeypatch: pytest.MonkeyPatch, model: SalmonnModel, audio: str) -> None:
    clock = fake_time(monkeypatch)
    calls = slowed(monkeypatch, clock, model.llm, "forward", 1.0)
    slowed(monkeypatch, clock, model, "load_audio", 4.0)
    slowed(monkeypatch, clock, model, "features", 8.0)
    sample = take_time(model, work(audio))
    assert len(calls) == TOKENS  # a prefill, and a step for each further token
    assert sample == {
        "ttft": [13.0],
        "tpot": [1.0] * (TOKENS - 1),
        "total": [12.0 + TOKENS],
        "rtf": [(12.0 + TOKENS) / 2],
    }
    assert [options["inputs_embeds"].shape[1] > 1 for _, options in calls[:1]] == [True]
    assert all(options["input_ids"].shape == (1, 1) for _, options in calls[1:])


def test_beams_by_a_clock(monkeypatch: pytest.MonkeyPatch, model: SalmonnModel, audio: str) -> None:
    """The first pass of the search is the prefill: one timed apart could be slower than the whole search."""
    clock = fake_time(monkeypatch)
    calls = slowed(monkeypatch, clock, model.llm, "forward", 1.0)
    slowed(monkeypatch, clock, model, "features", 8.0)
    sample = take_time(model, work(audio, beams=3))
    assert len(calls) == TOKENS
    assert not model.llm._forward_hooks
    total = 8.0 + TOKENS
    assert sample == {"ttft": [9.0], "tpot": [1.0], "total": [total], "rtf": [total / 2]}


def test_the_reference_by_a_clock(monkeypatch: pytest.MonkeyPatch, model: SalmonnModel, audio: str) -> None:
    """The spectrogram is made before the clock starts, the filter bank after it; one prefill, one step."""
    clock = fake_time(monkeypatch)
    calls = slowed(monkeypatch, clock, model.llm, "forward", 1.0)
    slowed(monkeypatch, clock, model, "features", 64.0)
    banks = slowed(monkeypatch, clock, timing, "fbank", 8.0)
    sample = take_time(model, work(audio, "reference"))
    assert (len(calls), len(banks)) == (2, 1)
    assert sample == {"ttft": [9.0], "tpot": [1.0], "latency": [10.0]}


def test_the_answer_is_json(model: SalmonnModel, audio: str) -> None:
    for sample in (take_time(model, work(audio)), take_time(model, work(audio, beams=2))):
        assert all(type(value) is float for values in sample.values() for value in values)


@pytest.mark.parametrize("llm", ["fp32", "bf16", "nf4"])
def test_an_llm_of_fewer_bits(
    llm: str, tiny_checkpoint: Path, audio: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It answers all the same; what it says of itself are two lines of JSON."""
    timed: list[SalmonnModel] = []
    real = timing.take_time

    def noted(model: SalmonnModel, asked: Work) -> Any:
        timed.append(model)
        return real(model, asked)

    monkeypatch.setattr(timing, "take_time", noted)
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(asdict(work(audio, "reference"))) + "\n"))
    assert main(["baseline", str(tiny_checkpoint), "--threads", "1", "--llm", llm]) == 0
    loaded, sample = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(loaded) == {"load_s", "loaded_mb", "versions"}
    assert set(sample) == {"ttft", "tpot", "latency"}
    (model,) = timed
    kinds = {type(layer).__name__ for name, layer in model.llm.named_modules() if name.endswith("q_proj")}
    assert kinds == {"Linear4bit" if llm == "nf4" else "Linear"}
    embeddings = model.llm.get_parameter("model.embed_tokens.weight")
    assert embeddings.dtype == (torch.float32 if llm == "fp32" else torch.bfloat16)
    assert next(model.whisper.parameters()).dtype == torch.float32


def test_a_folder_that_is_no_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["baseline", str(tmp_path), "--threads", "1"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {tmp_path}/config.json does not exist")
    assert printed.err.count("\n") == 1  # the last line is what runtime repeats


def test_memory() -> None:
    before = memory_mb()
    assert before["peak_mb"] >= before["steady_mb"] > 50
    np.ones(200 * 2**20, np.uint8)
    assert memory_mb()["peak_mb"] >= before["steady_mb"] + 100
    timing.forget_peak()
    if memory_mb()["peak_mb"] > before["steady_mb"] + 100:
        pytest.skip("this system does not let a process count its peak anew (proc(5), clear_refs)")
    assert memory_mb()["peak_mb"] >= memory_mb()["steady_mb"] * 0.99
