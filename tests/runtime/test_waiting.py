"""On which terms requests of an engine wait: for memory, until when."""

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from salmonrun.runtime import BusyError, DeadlineError, Engine, GenerationConfig, Limits
from salmonrun.runtime.errors import ConfigError
from tests.helpers.streams import before_steps


def most_of(engine: Engine, speech: Path) -> GenerationConfig:
    """A request that may need all the memory there is, and ends after a few tokens all the same."""
    position = engine.model.decoder._budget._position_bytes  # type: ignore[attr-defined]
    assert engine.model.limits.max_cache_mib
    positions = engine.model.limits.max_cache_mib * 2**20 // position
    samples = len(engine.model.load_audio(speech, None).pcm)
    beams = 1 + positions // 2000
    prompt = engine.model.positions(engine.model.request("asr"), samples) - GenerationConfig.max_new_tokens
    return GenerationConfig(num_beams=beams, max_new_tokens=positions // beams - prompt - 1)


def test_memory_that_is_kept_is_not_waited_for(tiny_bundle: Path, speech: Path) -> None:
    """Of a recording that is kept or a live stream, nobody knows when it ends: perhaps who asks has it."""
    engine = Engine.load(tiny_bundle, limits=Limits(max_cache_mib=1))
    config = most_of(engine, speech)
    free = r"may need 1\.0 MiB of keys and values, 0\.\d of 1\.0 MiB are free: .*ask again later"
    with engine.listen(speech), pytest.raises(BusyError, match=free):
        engine.generate(speech, task="asr", config=config)
    with engine.stream(), pytest.raises(BusyError, match=free):
        engine.generate(speech, task="asr", config=config)


def test_memory_of_an_answer_that_is_not_read_is_waited_for(tiny_bundle: Path, speech: Path) -> None:
    """In one thread: who waits runs the rounds of what it waits for."""
    engine = Engine.load(tiny_bundle, limits=Limits(max_cache_mib=1))
    every_token = tuple(range(engine.bundle.manifest.llm.vocab_size))
    all_of_it = replace(most_of(engine, speech), stop_token_ids=every_token)
    expected = engine.generate(speech, task="asr", config=all_of_it).token_ids
    unread = [engine.generate_iter(speech, task="asr", config=GenerationConfig(max_new_tokens=40)) for _ in range(20)]
    for pieces in unread:
        next(pieces)
    assert engine.model.rounds.open_searches > 0
    assert engine.generate(speech, task="asr", config=all_of_it).token_ids == expected
    assert engine.model.rounds.open_searches == 0


def test_a_deadline_that_passes(tiny_engine: Engine, speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one round, with an error that says how far it came; before that, at the next stage."""
    steps: list[int] = []

    def step() -> None:
        steps.append(1)
        if len(steps) == 3:
            monkeypatch.setattr(time, "monotonic", lambda: math.inf)

    before_steps(monkeypatch, tiny_engine, step)
    with pytest.raises(DeadlineError, match="passed after 4 tokens of the answer: give it longer"):
        tiny_engine.generate(speech, task="asr", deadline_s=60)
    assert len(steps) == 3
    with pytest.raises(DeadlineError, match="passed before encoding"):
        tiny_engine.generate(speech, task="asr", deadline_s=60)
    monkeypatch.undo()
    for unusable in ({"deadline_s": 0.0}, {"priority": -1}):
        with pytest.raises(ConfigError, match=next(iter(unusable))):
            tiny_engine.generate(speech, task="asr", **unusable)
    assert tiny_engine.generate(speech, task="asr", priority=3, deadline_s=60).token_ids


def test_deadlines_of_every_way_to_ask(tiny_engine: Engine, speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the call on, whenever the answer is taken."""
    segments, info = tiny_engine.transcribe(speech, task="asr", deadline_s=60)
    pieces = tiny_engine.generate_iter(speech, task="asr", deadline_s=60)
    with tiny_engine.listen(speech) as heard:
        asked = heard.ask_iter(task="asr", deadline_s=60)
        assert heard.ask(task="asr", deadline_s=60, priority=1).token_ids
        monkeypatch.setattr(time, "monotonic", lambda: math.inf)
        with pytest.raises(DeadlineError, match="before encoding"):
            next(pieces)
        with pytest.raises(DeadlineError, match="before encoding"):
            next(segments)
        with pytest.raises(DeadlineError, match="before decoding"):
            next(asked)
    assert not info.finished
    assert tiny_engine.model.rounds.open_searches == 0
