"""Protocol `load`: clients at once, and what they found together."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from salmonrun.runtime import Engine
from salmonrun.runtime.audio import F32
from salmonrun.runtime.latency import load
from tests.helpers.latencies import QUICK, fake_time, hiss, measured, own
from tests.helpers.slow import slow_down

STREAMS = replace(QUICK, task="asr", concurrency=(1, 3))
REQUESTS = replace(STREAMS, load_of="requests")


def test_cases(streaming_engine: Engine) -> None:
    def named(config: Any) -> list[tuple[str, str]]:
        return [(case.name, case.headline) for case in load.cases(streaming_engine, config, hiss())]

    assert named(STREAMS) == [("1 stream", "final"), ("3 streams", "final")]
    assert named(REQUESTS) == [("1 request", "total"), ("3 requests", "total")]


def test_streams_at_once(script: Callable[..., None], streaming_engine: Engine) -> None:
    script(0, 1000)
    for case, clients in zip(load.cases(streaming_engine, STREAMS, hiss()), STREAMS.concurrency, strict=True):
        sample = case.run()
        assert len(sample["final"]) == len(sample["updates"]) == len(sample["rtf"]) == clients
        assert sample["updates"] == [4.0] * clients
        assert len(sample["update"]) == len(sample["lag"]) == 4 * clients
        assert len(sample["audio_per_s"]) == 1


def test_requests_at_once(streaming_engine: Engine) -> None:
    for case, clients in zip(load.cases(streaming_engine, REQUESTS, hiss()), REQUESTS.concurrency, strict=True):
        sample = case.run()
        assert len(sample["ttft"]) == len(sample["total"]) == 2 * clients
        assert len(sample["tpot"]) == 2 * clients * (REQUESTS.tokens - 1)
        assert len(sample["requests_per_s"]) == len(sample["tokens_per_s"]) == 1
        per_request = sample["tokens_per_s"][0] / sample["requests_per_s"][0]
        assert per_request == pytest.approx(REQUESTS.tokens)


def test_throughput_of_streams(monkeypatch: pytest.MonkeyPatch, streaming_engine: Engine) -> None:
    """Three clients of 3 s each that take 0.5 s each of a clock that only one can move at a time."""
    clock, lock, heard = fake_time(monkeypatch), threading.Lock(), list[F32]()

    def hear(engine: Engine, config: Any, pcm: F32) -> dict[str, list[float]]:
        with lock:
            heard.append(pcm)
            clock.advance(0.5)
        return {"final": [float(len(heard))], "lag": []}

    monkeypatch.setattr(load, "run_stream", hear)
    sample = load.cases(streaming_engine, STREAMS, hiss())[1].run()
    assert sample["audio_per_s"] == [9.0 / 1.5]
    assert sorted(sample["final"]) == [1.0, 2.0, 3.0]
    starts = sorted(float(np.flatnonzero(hiss().pcm == pcm[0])[0]) / 16000 for pcm in heard)
    assert starts == [0.0, 1.5, 3.0]


def test_throughput_of_requests(monkeypatch: pytest.MonkeyPatch, streaming_engine: Engine) -> None:
    """One client, two requests of 2 s each."""
    clock, engine = fake_time(monkeypatch), own(streaming_engine)
    slow_down(engine, "prefill", 2.0, sleep=clock.advance)
    sample = load.cases(engine, REQUESTS, hiss())[0].run()
    assert sample["requests_per_s"] == [2 / 4.0]
    assert sample["tokens_per_s"] == [2 * REQUESTS.tokens / 4.0]
    assert sample["total"] == sample["ttft"] == [2.0, 2.0]


def test_a_client_that_fails_is_not_lost(monkeypatch: pytest.MonkeyPatch, streaming_engine: Engine) -> None:
    calls = []

    def hear(*arguments: Any) -> dict[str, list[float]]:
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("no more")
        return {"final": [1.0]}

    monkeypatch.setattr(load, "run_stream", hear)
    with pytest.raises(RuntimeError, match="no more"):
        load.cases(streaming_engine, STREAMS, hiss())[1].run()


def test_keeps_real_time() -> None:
    config = replace(STREAMS, max_lag_s=1.0)
    found = [
        measured("1 stream", {"lag": [0.1, 0.2]}, {"lag": [0.3]}),
        measured("2 streams", {"lag": [0.1] * 90 + [9.0] * 4}),  # fewer than 5 % are late
        measured("4 streams", {"lag": [0.1] * 90 + [9.0] * 10}),
        measured("8 streams", {"lag": []}),
    ]
    assert load.keeps_real_time(found, config) == {"1 stream": True, "2 streams": True, "4 streams": False}
    assert load.keeps_real_time([measured("2 requests", {"total": [1.0]})], config) == {}
