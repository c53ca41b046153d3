"""Protocol `stream` on a tiny bundle that hears in blocks, by its own clock and by one that stands still."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from salmonrun.runtime import Engine
from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.latency import stream
from salmonrun.runtime.latency.recording import Recording
from salmonrun.runtime.streaming.block_encoder import LOOK_AHEAD
from salmonrun.runtime.vad import VAD_HOP
from tests.helpers.answers import noise
from tests.helpers.latencies import QUICK, fake_time, hiss, own, seconds
from tests.helpers.slow import slow_down

CONFIG = replace(QUICK, task="asr")
BLOCKS = [0.32, 0.64]  # an update, of at least 0.5 s, is 2 of them or 1


def due(block_s: float, length_s: float) -> list[int]:
    """The samples at which updates come: whole hops behind whole blocks, with what the encoder looks ahead."""
    interval = round({0.32: 0.64, 0.64: 0.64}[block_s] * SAMPLE_RATE)
    hops = int(length_s * SAMPLE_RATE) // VAD_HOP
    wanted = [LOOK_AHEAD + n * interval for n in range(1, 100)]
    return [hop * VAD_HOP for hop in (-(-samples // VAD_HOP) for samples in wanted) if hop <= hops]


@pytest.mark.parametrize("block_s", BLOCKS)
def test_as_many_updates_as_there_are_blocks(
    script: Callable[..., None], streaming_engine: Engine, block_s: float
) -> None:
    script(0, 1000)
    (case,) = stream.cases(streaming_engine, replace(CONFIG, block_s=block_s), hiss())
    assert (case.name, case.headline) == ("3 s", "final")
    sample = case.run()
    updates = len(due(block_s, 3.0))
    assert updates == 4
    assert {metric: len(values) for metric, values in sample.items()} == {
        "first_partial": 1,
        "update": updates,
        "lag": updates,
        "final": 1,
        "updates": 1,
        "rtf": 1,
        "at_once": 1,
    }
    assert sample["updates"] == [updates]
    assert all(value > 0 for metric in ("first_partial", "update", "final", "rtf") for value in sample[metric])


def test_each_repetition_hears_another_part(
    monkeypatch: pytest.MonkeyPatch, script: Callable[..., None], streaming_engine: Engine
) -> None:
    heard = []
    monkeypatch.setattr(stream, "run_stream", lambda engine, config, pcm: heard.append(pcm) or {})
    (case,) = stream.cases(streaming_engine, CONFIG, hiss(8.0))
    for _ in range(3):
        case.run()
    for part, start_s in zip(heard, (0.0, 1.5, 3.0), strict=True):
        assert seconds(part) == 3.0
        np.testing.assert_array_equal(part, hiss(8.0).cut(3.0, start_s))


def test_a_machine_without_work_keeps_real_time(
    monkeypatch: pytest.MonkeyPatch, script: Callable[..., None], streaming_engine: Engine
) -> None:
    """No computation takes any time: pieces of 0.1 s are all that is waited for."""
    script(0, 1000)
    clock = fake_time(monkeypatch)
    begun = clock.now
    pcm = np.concatenate([0.001 * noise(0.3), noise(2.7)])
    sample = stream.run_stream(streaming_engine, replace(CONFIG, block_s=0.32, paced=True), pcm)
    pushed = [-(-samples // stream.PIECE) * 0.1 for samples in due(0.32, 3.0)]
    assert clock.now - begun == pytest.approx(3.0)
    assert sample["update"] == [0.0] * 4
    assert sample["lag"] == pytest.approx([at - n / SAMPLE_RATE for at, n in zip(pushed, due(0.32, 3.0), strict=True)])
    assert sample["first_partial"] == pytest.approx([pushed[0] - 0.3])
    assert (sample["final"], sample["rtf"]) == ([0.0], [0.0])


@pytest.mark.parametrize("paced", [True, False])
def test_work_shows(
    monkeypatch: pytest.MonkeyPatch, script: Callable[..., None], streaming_engine: Engine, paced: bool
) -> None:
    """Verifying the answer takes 0.25 s, at each update and at the end."""
    script(0, 1000)
    clock, engine = fake_time(monkeypatch), own(streaming_engine)
    slow_down(engine, "prefill", 0.25, sleep=clock.advance)
    sample = stream.run_stream(engine, replace(CONFIG, block_s=0.32, paced=paced), noise(3.0))
    assert sample["update"] == [0.25] * 4
    assert sample["final"] == [0.25]
    assert sample["rtf"] == pytest.approx([5 * 0.25 / 3.0])
    first = 0.25 + (-(-due(0.32, 3.0)[0] // stream.PIECE) * 0.1 if paced else 0.0)
    assert sample["first_partial"] == pytest.approx([first])


def test_who_is_too_slow_lags_behind(
    monkeypatch: pytest.MonkeyPatch, script: Callable[..., None], streaming_engine: Engine
) -> None:
    script(0, 1000)
    clock, engine = fake_time(monkeypatch), own(streaming_engine)
    slow_down(engine, "prefill", 1.0, sleep=clock.advance)
    sample = stream.run_stream(engine, replace(CONFIG, block_s=0.64, paced=True), noise(3.0))
    assert sample["lag"] == sorted(sample["lag"])
    assert sample["lag"][-1] > 1.0


def test_fast_streams_do_not_count_time_that_never_was(script: Callable[..., None], streaming_engine: Engine) -> None:
    """Speech that begins late was once heard before it was said."""
    script(0, 1000)
    late = Recording(np.concatenate([0.001 * noise(2.0), noise(1.0)]))
    (case,) = stream.cases(streaming_engine, CONFIG, late)
    assert case.run()["first_partial"][0] > 0


def test_definitions_say_how_pieces_come() -> None:
    assert "at the time at which it would have been recorded" in stream.definition(replace(CONFIG, paced=True))
    assert "as soon as the one before was heard" in stream.definition(CONFIG)
