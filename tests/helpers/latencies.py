"""What tests of latency share: a clock that waits to be told, engines that can be slowed down, figures made up."""

import copy
import time

import pytest

from salmonrun.runtime import Engine
from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.latency.config import LatencyConfig
from salmonrun.runtime.latency.machine import Memory, describe_machine
from salmonrun.runtime.latency.outcome import Outcome, ProtocolOutcome
from salmonrun.runtime.latency.recording import Recording
from salmonrun.runtime.latency.sampling import Measured, Sample, StopRule
from salmonrun.runtime.model import Model
from tests.helpers.answers import noise

AT_ONCE = StopRule(time_limit_s=0.0)  # a cold repetition and another one
QUICK = LatencyConfig(lengths_s=(1.0,), num_beams=(1,), tokens=4, utterance_s=3.0, paced=False, rule=AT_ONCE)
MEMORY = Memory(100.0, 150.0, 110.0, 120.0, True)


class FakeClock:
    """Time that passes when it is told to, in binary fractions of seconds if those are told."""

    def __init__(self) -> None:
        self.now = 1024.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Sleep."""
        self.now += seconds


def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Have everything read this clock, and sleep by it."""
    clock = FakeClock()
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(time, "sleep", clock.advance)
    return clock


def own(engine: Engine) -> Engine:
    """The same graphs behind objects whose methods may be replaced."""
    model = engine.model
    return Engine(Model(model.bundle, copy.copy(model.encoder), copy.copy(model.decoder), model.limits))


def hiss(seconds: float = 8.0) -> Recording:
    """Loud from its first sample on, and nowhere the same."""
    return Recording(noise(seconds))


def seconds(pcm: F32) -> float:
    return len(pcm) / SAMPLE_RATE


def measured(name: str, *samples: Sample, headline: str = "total", cold: Sample | None = None) -> Measured:
    return Measured(name, headline, cold or samples[0], list(samples))


def outcome(engine: Engine, *protocols: ProtocolOutcome, config: LatencyConfig = QUICK) -> Outcome:
    manifest = engine.bundle.manifest.manifest_sha256
    return Outcome(
        "2026-01-01T00:00:00+00:00", describe_machine(), engine.report(), manifest, config, 0.5, [*protocols]
    )
