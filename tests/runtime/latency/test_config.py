"""Settings that are refused, and those that are fitted to a bundle, through `measure`."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from salmonrun.runtime import Engine
from salmonrun.runtime.errors import AudioError, AudioNotFoundError, ConfigError, PromptError, UnknownTaskError
from salmonrun.runtime.latency.config import LENGTHS_S, LatencyConfig
from salmonrun.runtime.latency.outcome import Outcome
from salmonrun.runtime.latency.recording import wav
from salmonrun.runtime.latency.run import measure
from salmonrun.runtime.latency.sampling import StopRule
from tests.helpers.latencies import QUICK


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocols": ()}, r"protocols is \(\); expected at least one"),
        ({"protocols": ("request", "request")}, "each once"),
        ({"protocols": ("requests",)}, "protocols has 'requests'; expected 'reference', 'request', 'stream' or 'load'"),
        ({"lengths_s": (1.0, 0.0)}, "lengths_s has 0; it must be above 0"),
        ({"lengths_s": (math.nan,)}, "lengths_s has nan"),
        ({"lengths_s": (math.inf,)}, "lengths_s has inf"),
        ({"lengths_s": (2.0, 2.0)}, "each once"),
        ({"utterance_s": -1.0}, "utterance_s has -1"),
        ({"utterance_s": math.nan}, "utterance_s is nan; expected a finite number"),
        ({"max_lag_s": 0.0}, "max_lag_s has 0"),
        ({"num_beams": (4, 0)}, "num_beams has 0; it must be at least 1"),
        ({"concurrency": (0,)}, "concurrency has 0; it must be at least 1"),
        ({"tokens": 1}, "tokens is 1; at least 2 are needed"),
        ({"rule": StopRule(precision=0.0)}, "precision has 0"),
        ({"rule": StopRule(precision=math.nan)}, "precision is nan; expected a finite number"),
        ({"rule": StopRule(time_limit_s=-1.0)}, "time_limit_s is -1; it must be at least 0"),
        ({"rule": StopRule(time_limit_s=math.nan)}, "time_limit_s is nan"),
        ({"rule": StopRule(time_limit_s=math.inf)}, "time_limit_s is inf; .* finite"),
    ],
    ids=str,
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LatencyConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lengths_s": (1.0, 100.0)},
            "'request' has recordings of 100 s; this bundle hears 4 s at once: ask for short",
        ),
        ({"protocols": ("stream",), "utterance_s": 4.5}, "'stream' has recordings of 4.5 s; this bundle hears 4 s"),
        ({"protocols": ("load",), "utterance_s": 4.5}, "'load' has recordings of 4.5 s; this bundle hears 4 s"),
        ({"protocols": ("request", "reference")}, "'reference' has recordings of 10 s; .* hears 4 s at once: leave it"),
        ({"num_beams": (1, 99)}, "num_beams is 99, the limit is 16"),
    ],
    ids=str,
)
def test_refused_by_the_bundle_before_anything_is_run(
    monkeypatch: pytest.MonkeyPatch, streaming_engine: Engine, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.delattr(Engine, "generate")
    with pytest.raises(ConfigError, match=message):
        measure(streaming_engine, 0.0, replace(QUICK, **changes))


def test_prompts_are_refused_as_ever(tiny_engine: Engine) -> None:
    with pytest.raises(UnknownTaskError, match="unknown task 'sing'"):
        measure(tiny_engine, 0.0, replace(QUICK, task="sing"))
    with pytest.raises(PromptError, match="the prompt is empty"):
        measure(tiny_engine, 0.0, replace(QUICK, prompt=""))
    with pytest.raises(PromptError, match="exactly one of task= and prompt="):
        measure(tiny_engine, 0.0, replace(QUICK, task="asr", prompt="Hm?"))


def test_recordings_are_refused(tiny_engine: Engine) -> None:
    with pytest.raises(AudioNotFoundError, match=r"'/gone\.wav' does not exist"):
        measure(tiny_engine, 0.0, QUICK, recording="/gone.wav")
    with pytest.raises(AudioError, match=r"the recording is no speech to measure with .*silence.*choose another one"):
        measure(tiny_engine, 0.0, QUICK, recording=wav(np.zeros(48000, np.float32)))


def names(outcome: Outcome) -> list[str]:
    return [case.name for protocol in outcome.protocols for case in protocol.cases]


def test_the_default_lengths_are_those_that_the_bundle_hears(streaming_engine: Engine) -> None:
    found = measure(streaming_engine, 0.0, replace(QUICK, lengths_s=LENGTHS_S))
    assert names(found) == ["2 s, greedy"]
    assert found.config.lengths_s == (2.0,)


def test_utterances_matter_to_streams_alone(streaming_engine: Engine) -> None:
    assert names(measure(streaming_engine, 0.0, replace(QUICK, utterance_s=10.0))) == ["1 s, greedy"]


def test_the_task(monkeypatch: pytest.MonkeyPatch, tiny_engine: Engine) -> None:
    assert measure(tiny_engine, 0.0, QUICK).config.task == "asr"
    assert measure(tiny_engine, 0.0, replace(QUICK, prompt="Hm?")).config.task is None
    monkeypatch.setattr(Engine, "tasks", ("caption", "qa"))
    assert measure(tiny_engine, 0.0, QUICK).config.task == "caption"
    monkeypatch.setattr(Engine, "tasks", ())
    with pytest.raises(ConfigError, match="this bundle has no task prompts; pass a prompt"):
        measure(tiny_engine, 0.0, QUICK)


def test_progress(tiny_engine: Engine) -> None:
    told: list[tuple[str, int, int, int]] = []
    config = replace(QUICK, protocols=("request", "reference"), num_beams=(1, 2))
    measure(tiny_engine, 0.0, config, progress=lambda *now: told.append(now))
    assert told == [("request", n, 0, 2) for n in (1, 2, 3, 4)] + [("reference", n, 0, 1) for n in (1, 2)]
