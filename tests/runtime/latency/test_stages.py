"""Stages by a clock that stands still but where one of them is slowed down: it shows there, and nowhere else."""

from dataclasses import replace
from pathlib import Path

import pytest

from salmonrun.export import export_bundle
from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.latency import request
from salmonrun.runtime.latency.request import STAGES
from salmonrun.runtime.stopwatch import Stopwatch
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from tests.helpers.latencies import QUICK, fake_time, hiss, own
from tests.helpers.slow import slow_down

TOKENS = 5


def exactly(beams: int) -> GenerationConfig:
    """An answer of so many tokens, whatever they are."""
    return GenerationConfig(max_new_tokens=TOKENS, num_beams=beams, stop_token_ids=())


@pytest.fixture(scope="module")
def deaf_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Without BEATs."""
    folder = tmp_path_factory.mktemp("deaf")
    init_checkpoint(replace(preset("tiny"), audio_encoder=None), folder / "checkpoint")
    return Engine.load(export_bundle(folder / "checkpoint", folder / "bundle"))


def test_a_stopwatch_loses_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = fake_time(monkeypatch)
    watch = Stopwatch()
    assert (watch.elapsed, watch.stages) == (0.0, {})
    for stage, taken in (("a", 1.0), ("b", 0.25), ("a", 2.0)):
        clock.advance(taken)
        watch.lap(stage)
    clock.advance(64.0)  # in no stage yet
    assert watch.stages == {"a": 3.0, "b": 0.25}
    assert watch.elapsed == 3.25


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_a_slow_stage_shows_there_alone(
    monkeypatch: pytest.MonkeyPatch, tiny_engine: Engine, speech: Path, stage: str, beams: int
) -> None:
    clock, engine = fake_time(monkeypatch), own(tiny_engine)
    slow_down(engine, stage, 1.0, sleep=clock.advance)
    timings = engine.generate(speech, task="asr", config=exactly(beams)).timings
    taken = TOKENS - 1.0 if stage == "decode" else 1.0  # the prefill knows the first token; beams step together
    assert timings.stages == {name: taken if name == stage else 0.0 for name in STAGES}
    assert timings.total_s == taken
    assert timings.ttft_s == (0.0 if stage == "decode" else 1.0)
    assert timings.tpot_s == (1.0 if stage == "decode" else 0.0)
    assert timings.features_s == (1.0 if stage == "features" else 0.0)
    assert timings.encode_s == (1.0 if stage in ("whisper", "audio_encoder", "qformer") else 0.0)
    assert timings.prefill_s == (1.0 if stage == "prefill" else 0.0)
    steps = [float(i) for i in range(TOKENS)] if beams == 1 else [0.0, TOKENS - 1.0]
    assert list(timings.token_s) == (steps if stage == "decode" else [1.0] * len(steps))


def test_the_protocol_repeats_what_the_engine_says(monkeypatch: pytest.MonkeyPatch, tiny_engine: Engine) -> None:
    clock, engine = fake_time(monkeypatch), own(tiny_engine)
    for stage, taken in (("whisper", 1.0), ("decode", 0.5)):
        slow_down(engine, stage, taken, sleep=clock.advance)
    config = replace(QUICK, lengths_s=(2.0,), num_beams=(1, 4), tokens=TOKENS, task="asr")
    greedy, beams = (case.run() for case in request.cases(engine, config, hiss()))
    stages = {stage: [0.0] for stage in STAGES} | {"whisper": [1.0], "decode": [2.0]}
    assert greedy == {**stages, "ttft": [1.0], "tpot": [0.5] * 4, "total": [3.0], "rtf": [1.5]}
    assert beams == {**stages, "ttft": [1.0], "tpot": [0.5], "total": [3.0], "rtf": [1.5]}


@pytest.mark.parametrize("beams", [1, 4])
def test_stages_add_up(tiny_engine: Engine, speech: Path, beams: int) -> None:
    timings = tiny_engine.generate(speech, task="asr", config=exactly(beams)).timings
    assert list(timings.stages) == list(STAGES)
    assert all(taken > 0 for taken in timings.stages.values())
    assert sum(timings.stages.values()) == pytest.approx(timings.total_s, abs=1e-9)
    before_decoding = timings.total_s - timings.stages["decode"]
    assert before_decoding <= timings.ttft_s <= timings.token_s[-1] <= timings.total_s
    assert timings.features_s + timings.encode_s + timings.prefill_s <= timings.total_s


def test_no_beats_no_stage(deaf_engine: Engine, speech: Path) -> None:
    timings = deaf_engine.generate(speech, task="asr", config=exactly(1)).timings
    assert list(timings.stages) == [stage for stage in STAGES if stage != "audio_encoder"]
    assert sum(timings.stages.values()) == pytest.approx(timings.total_s, abs=1e-9)


def test_silence_has_no_stages_behind_the_audio(tiny_engine: Engine) -> None:
    result = tiny_engine.generate(0 * hiss(2.0).pcm, task="asr", sample_rate=16000)
    assert set(result.timings.stages) == {"prompt", "audio"}
    assert sum(result.timings.stages.values()) == pytest.approx(result.timings.total_s, abs=1e-9)
    assert (result.timings.ttft_s, result.timings.token_s) == (0.0, ())
