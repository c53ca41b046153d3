"""Protocols `request` and `reference` on a tiny bundle: what is run, and what is counted."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from salmonrun.runtime import Engine
from salmonrun.runtime.errors import AudioError
from salmonrun.runtime.latency import reference, request
from salmonrun.runtime.latency.recording import Recording
from salmonrun.runtime.latency.request import STAGES
from salmonrun.runtime.running import PIECE
from tests.helpers.answers import noise
from tests.helpers.latencies import QUICK, fake_time, hiss, own, seconds
from tests.helpers.slow import slow_down

CONFIG = replace(QUICK, task="asr", lengths_s=(1.0, 2.5), num_beams=(1, 3))


def counted(engine: Engine, *names: str) -> tuple[Engine, list[str]]:
    """An engine that writes down when these methods of its parts are called."""
    mine, calls = own(engine), list[str]()

    def counting(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return plain(*arguments, **options)

        return run

    for name in names:
        part: Any = mine.model.encoder if hasattr(mine.model.encoder, name) else mine.model.decoder
        setattr(part, name, counting(name, getattr(part, name)))
    return mine, calls


def test_a_case_for_each_length_and_search(tiny_engine: Engine) -> None:
    cases = request.cases(tiny_engine, CONFIG, hiss())
    names = ["1 s, greedy", "1 s, 3 beams", "2.5 s, greedy", "2.5 s, 3 beams"]
    assert [(case.name, case.headline) for case in cases] == [(name, "total") for name in names]


@pytest.mark.parametrize("beams", [1, 3])
def test_every_answer_has_its_tokens(tiny_engine: Engine, beams: int) -> None:
    engine, calls = counted(tiny_engine, "forward", "whisper", "audio_encoder", "qformer")
    (case,) = request.cases(engine, replace(CONFIG, lengths_s=(2.5,), num_beams=(beams,)), hiss())
    sample = case.run()
    asked = tiny_engine.model.request("asr", config=request.generation(CONFIG, beams))
    pieces = -(-(tiny_engine.model.positions(asked, 40_000) - CONFIG.tokens) // PIECE)
    assert calls == ["whisper", "audio_encoder", "qformer", *["forward"] * (pieces + CONFIG.tokens - 1)]
    assert list(sample) == [*STAGES, "ttft", "tpot", "total", "rtf"]
    assert len(sample["tpot"]) == (CONFIG.tokens - 1 if beams == 1 else 1)
    assert all(value > 0 for values in sample.values() for value in values)
    assert sample["rtf"] == [sample["total"][0] / 2.5]
    assert sum(sample[stage][0] for stage in STAGES) <= sample["total"][0]


def test_the_recording_is_what_is_heard(tiny_engine: Engine) -> None:
    engine, heard = own(tiny_engine), []
    load = engine.model.load_audio
    engine.model.load_audio = lambda *arguments: heard.append(load(*arguments)) or heard[-1]  # type: ignore[method-assign]
    (case,) = request.cases(engine, replace(CONFIG, lengths_s=(2.5,), num_beams=(1,)), hiss())
    case.run()
    assert seconds(heard[0].pcm) == 2.5
    np.testing.assert_allclose(heard[0].pcm, hiss().pcm[:40000], atol=2**-15)  # 16 bits


def test_silence_is_no_measurement(tiny_engine: Engine) -> None:
    late = Recording(np.concatenate([np.zeros(32000, np.float32), noise(4.0)]))
    (case,) = request.cases(tiny_engine, replace(CONFIG, lengths_s=(2.0,), num_beams=(1,)), late)
    with pytest.raises(AudioError, match=r"2 s of the recording cannot be measured \(silence.*choose another one"):
        case.run()


# reference


def test_the_noise() -> None:
    noise = reference.noise()
    assert noise.shape == (160_000,)
    assert noise.dtype == np.float32
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.std()) == pytest.approx(1.0, abs=0.01)
    np.testing.assert_array_equal(noise, reference.noise())


def test_one_prefill_and_one_step(tiny_engine: Engine) -> None:
    names = ("log_mel", "filter_bank", "whisper", "audio_encoder", "qformer", "forward", "forward")
    engine, calls = counted(tiny_engine, *dict.fromkeys(names))
    (case,) = reference.cases(engine, CONFIG)
    assert (case.name, case.headline) == ("10 s of noise", "latency")
    assert calls == []
    sample = case.run()
    assert calls == list(names)
    assert {metric: len(values) for metric, values in sample.items()} == {"ttft": 1, "tpot": 1, "latency": 1}
    assert sample["latency"][0] == pytest.approx(sample["ttft"][0] + sample["tpot"][0], abs=1e-9)


@pytest.mark.parametrize(
    ("stage", "ttft", "tpot"),
    [("whisper", 1, 0), ("audio_encoder", 1, 0), ("qformer", 1, 0), ("prefill", 1, 0), ("decode", 0, 1)],
)
def test_reference_stages(
    monkeypatch: pytest.MonkeyPatch, tiny_engine: Engine, stage: str, ttft: float, tpot: float
) -> None:
    clock, engine = fake_time(monkeypatch), own(tiny_engine)
    slow_down(engine, stage, 1.0, sleep=clock.advance)
    (case,) = reference.cases(engine, CONFIG)
    assert case.run() == {"ttft": [ttft], "tpot": [tpot], "latency": [1.0]}


@pytest.mark.parametrize(("feature", "ttft"), [("log_mel", 0.0), ("filter_bank", 1.0)])
def test_the_spectrogram_is_made_before_the_clock_starts(
    monkeypatch: pytest.MonkeyPatch, tiny_engine: Engine, feature: str, ttft: float
) -> None:
    clock, engine = fake_time(monkeypatch), own(tiny_engine)
    plain = getattr(engine.model.encoder, feature)

    def slow(pcm: Any) -> Any:
        clock.advance(1.0)
        return plain(pcm)

    setattr(engine.model.encoder, feature, slow)
    (case,) = reference.cases(engine, CONFIG)
    assert case.run()["ttft"] == [ttft]


def test_it_is_the_engine_that_is_measured(monkeypatch: pytest.MonkeyPatch, tiny_engine: Engine) -> None:
    """The step takes the token that the engine's own greedy search says first."""
    engine, steps = own(tiny_engine), []
    decoder: Any = engine.model.decoder
    plain = decoder.forward
    decoder.forward = lambda chunks: steps.append(chunks[0].inputs) or plain(chunks)
    (case,) = reference.cases(engine, CONFIG)
    case.run()
    said = tiny_engine.generate(
        reference.noise(), task="asr", sample_rate=16000, config=request.generation(replace(CONFIG, tokens=2), 1)
    )
    assert steps[1:] == [said.token_ids[:1]]
