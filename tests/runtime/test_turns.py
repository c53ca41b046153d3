"""Encoders take turns: one at a time, streams first, nobody for ever behind."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from salmonrun.runtime import DeadlineError, Engine
from salmonrun.runtime.audio import Audio
from salmonrun.runtime.terms import LIVE, WHENEVER, CancelledEarlyError, Terms
from salmonrun.runtime.turns import PATIENCE, Turns
from tests.helpers.streams import BLOCKS, VARIED, noise


class Line:
    """Threads that wait for their turn, in a known order of coming, and are written down when they have it."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.order: list[str] = []
        self._threads: list[threading.Thread] = []

    def join(self, name: str, terms: Terms) -> None:
        waiting = self.turns.waiting

        def take() -> None:
            with self.turns.turn(terms, "encoding"):
                self.order.append(name)

        self._threads.append(threading.Thread(target=take))
        self._threads[-1].start()
        while self.turns.waiting == waiting:
            time.sleep(0.001)

    @contextmanager
    def held(self) -> Iterator[None]:
        """All come while somebody has the turn, and are let go then."""
        with self.turns.turn(WHENEVER, "encoding"):
            yield
        for thread in self._threads:
            thread.join(30)


def test_streams_first_then_by_priority_then_by_coming() -> None:
    line = Line()
    with line.held():
        for name, terms in (("window 1", Terms(0)), ("later", Terms(3)), ("window 2", Terms(0)), ("block", LIVE)):
            line.join(name, terms)
    assert line.order == ["block", "window 1", "window 2", "later"]


def test_nobody_waits_for_ever() -> None:
    line = Line()
    with line.held():
        line.join("window", WHENEVER)
        for number in range(PATIENCE + 3):
            line.join(f"block {number}", LIVE)
    assert line.order.index("window") == PATIENCE


def test_who_waits_can_be_cancelled_or_too_late() -> None:
    turns, cancel = Turns(), threading.Event()
    with turns.turn(WHENEVER, "encoding"), ThreadPoolExecutor(2) as threads:

        def wait(terms: Terms) -> Any:
            with turns.turn(terms, "encoding"):
                return None

        waiting = [threads.submit(wait, terms) for terms in (Terms(cancel=cancel), Terms.of(0, 0.05, None))]
        with pytest.raises(DeadlineError, match="passed before encoding"):
            waiting[1].result(30)
        cancel.set()
        with pytest.raises(CancelledEarlyError, match="cancelled before encoding"):
            waiting[0].result(30)
    assert turns.waiting == 0
    with turns.turn(WHENEVER, "encoding"):
        pass


def test_it_is_said_whether_it_was_waited_for() -> None:
    turns = Turns()
    with turns.turn(WHENEVER, "encoding") as waited:
        assert waited is False
        with ThreadPoolExecutor(1) as threads:

            def wait() -> bool:
                with turns.turn(WHENEVER, "encoding") as waited:
                    return waited

            other = threads.submit(wait)
            while not turns.waiting:
                time.sleep(0.001)
            turns._taken = False  # as at the end of the turn
            assert other.result(30) is True


def test_a_stream_waits_for_one_window_at_most(streaming_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five recordings that come before, it is heard behind the one that is being encoded."""
    encoder, order = streaming_engine.model.encoder, []
    plain, go = encoder.encode, threading.Event()

    def encode(audio: Audio, *watch: Any) -> Any:
        order.append("window")
        assert go.wait(30)
        return plain(audio, *watch)

    qformer = encoder.qformer
    monkeypatch.setattr(encoder, "encode", encode)
    monkeypatch.setattr(encoder, "qformer", lambda *states: order.append("qformer") or qformer(*states))
    pcm = noise(32_000)
    encoding = streaming_engine.model.encoding

    def stream() -> None:
        with streaming_engine.stream(config=BLOCKS, generation=VARIED) as stream:
            stream.push(np.concatenate([pcm[:9_000]]))

    with ThreadPoolExecutor(6) as threads:
        requests = [threads.submit(streaming_engine.generate, pcm, sample_rate=16000) for _ in range(5)]
        while encoding.waiting < 4:
            time.sleep(0.001)
        block = threads.submit(stream)
        while encoding.waiting < 5:
            time.sleep(0.001)
        go.set()
        block.result(60)
        assert all(request.result(60).token_ids for request in requests)
    assert order[:4] == ["window", "qformer", "qformer", "window"]  # the second qformer is the block's
