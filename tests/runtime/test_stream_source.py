"""Where the PCM of a stream comes from: raw samples, in pieces, at the pace of a microphone."""

import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from salmonrun.runtime.commands.source import at_own_speed, chunks, open_source, read_raw


@pytest.mark.skipif(sys.platform != "linux", reason="pipes elsewhere cannot be resized")
def test_a_pipe_holds_what_a_recorder_writes_during_a_slow_update(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as read, open(writer, "wb", buffering=0) as write:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(read))
        source = open_source("-", None)
        assert write.write(bytes(500_000)) == 500_000  # 15 s; would block if the pipe held less
        assert len(next(source.pieces)) == 250_000


def test_samples_are_little_endian() -> None:
    (pcm,) = read_raw(io.BytesIO(b"\x01\x00\x00\x80\xff\x7f"), [])
    assert pcm.dtype == np.int16
    assert pcm.tolist() == [1, -32768, 32767]


class Clock:
    """Time goes on when one sleeps, or when `now` is set."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def pieces(*sizes: int) -> Iterator[np.ndarray[Any, Any]]:
    first = 0
    for size in sizes:
        yield np.arange(first, first + size, dtype=np.int16)
        first += size


def test_pieces_come_when_their_last_sample_is_recorded() -> None:
    clock = Clock()
    got = [(len(piece), clock.now) for piece in at_own_speed(pieces(10, 10, 20), 100, clock, clock.sleep)]
    assert [size for size, _ in got] == [10, 10, 20]
    assert [at for _, at in got] == pytest.approx([100.1, 100.2, 100.4])


def test_who_is_late_gets_all_that_was_recorded_meanwhile() -> None:
    clock = Clock()
    paced = at_own_speed(pieces(*[10] * 8), 100, clock, clock.sleep)
    got = [next(paced)]
    clock.now += 0.35  # an update that takes long: pieces 2, 3 and 4 are recorded while it runs
    for piece in paced:
        got.append(piece)
    assert [len(piece) for piece in got] == [10, 30, 10, 10, 10, 10]
    assert np.concatenate(got).tolist() == list(range(80))
    assert clock.now == pytest.approx(100.8)  # all is caught up
    assert clock.slept[0] == pytest.approx(0.1)
    assert min(clock.slept) > 0


@pytest.mark.parametrize("size", [1, 7, 10, 100])
def test_chunks(size: int) -> None:
    parts = list(chunks(pieces(20, 0, 9), size))
    assert max(map(len, parts)) <= size
    assert min(map(len, parts)) > 0
    assert np.concatenate(parts).tolist() == list(range(29))
