"""The load tool: what it tries, what it counts, and that a real server is measured by it."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("openai", reason="OpenAI's client is not installed")

from benchmarks.serving import one_by_one, page, requests, soak, streams
from benchmarks.serving.__main__ import climb
from benchmarks.serving.streams import Told
from salmonrun.runtime import Engine, rounds
from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.latency.recording import Recording
from salmonrun.runtime.running import Running
from tests.helpers.servers import serving


def run(count: int, capacity: int) -> tuple[int, float, Told]:
    """As if so many were in real time."""
    late = 0.1 if count <= capacity else 3.0
    return count, 10.0, Told([0.05, late], [0.02, late], took_s=10.0 + late)


@pytest.mark.parametrize("capacity", [0, 1, 2, 3, 5, 8, 11, 100])
def test_it_climbs_to_where_real_time_ends(capacity: int) -> None:
    """To one stream of few, and to an eighth of many; no further than it may."""
    runs = climb(lambda count: run(count, capacity), most=64, trials=1)
    counts = [count for count, _, _ in runs]
    assert counts == sorted(set(counts))
    assert counts[-1] <= 64
    found = page.best(runs)
    assert found <= capacity
    assert min(capacity, 64) - found <= max(0, found // 8)


def test_the_most_streams_are_in_real_time_again_and_again() -> None:
    """Eight were once, and never again: six are, all three times, and what is far below is measured once."""
    measured: list[int] = []

    def measure(count: int) -> tuple[int, float, Told]:
        measured.append(count)
        return run(count, 8 if measured.count(count) == 1 else 6)

    runs = climb(measure, most=64, trials=3)
    assert page.best(runs) == 6
    assert Counter(measured) == {1: 1, 2: 1, 4: 3, 8: 2, 16: 1, 6: 3, 7: 2}
    assert {count: told.trials for count, _, told in runs} == Counter(measured)
    assert next(told.took_s for count, _, told in runs if count == 6) == pytest.approx(3 * 10.1)


def test_rounds_of_one_search(monkeypatch: pytest.MonkeyPatch, demo_engine: Engine) -> None:
    """What the table compares with: the same answers, in rounds that have room for one."""
    taken: list[int] = []

    def plan(searches: Sequence[Running[object]], number: int) -> list[Running[object]]:
        taken.append(len(searches))
        return one_by_one.plan(searches, number)

    audio = Recording.load(None)
    with ExitStack() as stack:
        heard = [
            stack.enter_context(demo_engine.listen(audio.cut(2.0, 3.1 * number), sample_rate=SAMPLE_RATE))
            for number in range(3)
        ]
        alone = [one.ask().token_ids for one in heard]
        monkeypatch.setattr(rounds, "plan", plan)
        with ThreadPoolExecutor(3) as threads:
            together = list(threads.map(lambda one: one.ask().token_ids, 20 * heard))
    assert together == 20 * alone
    assert max(taken) > 1  # several waited


def test_who_is_lost_or_late_is_not_in_real_time() -> None:
    assert run(1, 1)[2].real_time
    assert not run(2, 1)[2].real_time
    assert not Told([0.1], [0.1], lost=1).real_time
    assert not Told([0.1], []).real_time
    row = page.streams_table({"so": [(2, 10.0, Told([0.1], [0.2], lost=1, took_s=10.0))]}).splitlines()[-1]
    assert row.startswith("| so | 2 | 1 | 100 ms |")
    assert row.endswith("| 2.0 | no: 1 lost |")


def test_a_server_is_measured(demo_engine: Engine) -> None:
    with serving(demo_engine, max_streams=2) as running:
        told = streams.measure(running.url, streams=2, seconds=4.0, utterance_s=2.0)
        assert (told.lost, len(told.final_s)) == (0, 4)
        assert told.took_s > 4.0  # at the pace of speech
        assert told.lag_s
        assert min(told.lag_s) >= 0
        assert streams.measure(running.url, streams=3, seconds=0.5, utterance_s=0.5).lost == 1
        answered = requests.measure(running.url, clients=2, requests=3, seconds=2.0)
        assert len(answered.request_s) == 3
        assert answered.audio_s == 6.0
        assert "| one | 2 |" in page.requests_table([("one", 2, answered)])


def minutes(**changed: Sequence[float]) -> list[soak.Minute]:
    """Twelve good ones, but for what changes from minute to minute."""
    fine = soak.Minute(0, 0.1, 0.1, True, 0, 10, 0.5, 0, 0, 300.0, 20, 15, dict.fromkeys(soak.LEFT, 0.0))
    return [
        replace(fine, minute=at, **{name: values[at] for name, values in changed.items()})  # type: ignore[arg-type]
        for at in range(12)
    ]


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({}, None),
        ({"resident_mib": [200.0] + [300.0] * 11}, None),  # what is loaded at first
        ({"resident_mib": [300.0 + 5 * at for at in range(12)]}, "resident_mib grew from 322.5 to 350"),
        ({"files": range(15, 27)}, "files grew"),
        ({"lost": [0] * 11 + [1]}, "1 lost"),
        ({"failed": [2] + [0] * 11}, "2 failed"),
        ({"different": [0, 1] * 6}, "6 different"),
        ({"real_time": [True] * 9 + [False] * 3}, r"not in real time in 3 of 12 minutes: \[9, 10, 11\]"),
        ({"left": [{}] * 11 + [{"kv_cache_bytes": 8.0}]}, "something is left behind: {11:"),
    ],
)
def test_what_a_soak_says(changed: dict[str, Sequence[float]], wrong: str | None) -> None:
    said = soak.verdict(minutes(**changed))
    assert [bool(re.match(wrong or "", one)) for one in said] == ([True] if wrong else [])


def test_a_minute_of_a_soak(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of two seconds, at a server that runs in this process."""
    monkeypatch.setattr(soak, "MINUTE_S", 7.0)
    monkeypatch.setattr(soak, "SPOKEN_S", 1.0)
    with serving(demo_engine) as running:
        asker = soak.Asker(running.url, 1.0)
        one = soak.measure(running.url, os.getpid(), 1, 1, asker)
    assert one.requests
    assert (one.lost, one.failed, one.different) == (0, 0, 0)
    assert not any(one.left.values())
    assert min(one.resident_mib / 100, one.threads, one.files / 3) > 1
    soak.draw([one], tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 10_000
