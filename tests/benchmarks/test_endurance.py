"""The benchmark of long audio: it counts every sample, and a line through memory is a line through memory."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import endurance
from salmonrun.runtime.audio import SAMPLE_RATE


def test_half_a_minute(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of which every half second is looked at; so short a run cannot tell how memory grows."""
    monkeypatch.setattr(endurance, "MOST_GROWTH", 1e9)
    options = ["--minutes", "0.5", "--max-new-tokens", "4", "--update", "2"]
    monkeypatch.setattr(sys, "argv", ["endurance", str(tiny_bundle), *options])
    assert endurance.main() == 0
    told = json.loads(capsys.readouterr().out)
    for outcome in told.values():
        assert outcome["passed"]
        assert outcome["unaccounted_samples"] == 0
        assert outcome["segments"] > 1
        assert outcome["memory_mb"] > 10
    assert told["stream"]["slot_is_free"]
    assert told["stream"]["latency_of_the_last_hundred_ms"] > 0


def test_memory_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = endurance.Memory(600.0)
    sizes = iter([500.0] * 10 + [100 + 3 * number / 6 for number in range(50)])  # 3 MB an hour, once it is settled
    monkeypatch.setattr(endurance, "private_mb", lambda: next(sizes))
    for minute in range(601):
        memory.look(minute * 60 * SAMPLE_RATE)
    assert memory.growth_mb_per_hour == pytest.approx(3.0)
    assert memory.last_mb == 124.5
