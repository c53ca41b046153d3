"""Where the PCM of a stream comes from, and how fast: a file, or raw samples on standard input."""

import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.audio_file import held
from salmonrun.runtime.errors import AudioError, ConfigError
from salmonrun.runtime.longform.reader import PcmReader

STDIN = "-"
Pcm = npt.NDArray[Any]  # [N] int16, or float32 of full scale 1.0

_READ = 1 << 20  # bytes at most that are read at once, and that a pipe may hold: 32 s
_CONTAINERS = (b"RIFF", b"fLaC", b"OggS", b"ID3")  # what files with a header begin with
_ADVICE = (
    "expected raw little-endian 16-bit PCM of one channel, e.g. from ffmpeg -i INPUT -f s16le -ar 16000 -ac 1 - "
    "or arecord -f S16_LE -r 16000 -t raw"
)


@dataclass(frozen=True)
class Source:
    """PCM in pieces of any length."""

    rate: int  # Hz
    pieces: Iterator[Pcm]
    notes: list[str]  # what was done to the audio; complete when all pieces are taken


def open_source(file: str, rate: int | None) -> Source:
    """An audio file, read as it is taken, or standard input ("-") with samples at `rate`, as they come.

    Raises:
        AudioError: no such file, not audio, or standard input is a terminal. Later, while pieces are taken: samples
            that cannot be used, or none at all.
        ConfigError: a rate is given for a file, which carries its own.
    """
    if file == STDIN:
        if sys.stdin.isatty():
            raise AudioError(f"standard input is a terminal; {_ADVICE}")
        notes: list[str] = []
        return Source(SAMPLE_RATE if rate is None else rate, read_raw(_deepened(sys.stdin.buffer), notes), notes)
    if rate is not None:
        raise ConfigError(f"--rate {rate} is for raw PCM on standard input (FILE '-'); a file carries its own rate")
    reader = PcmReader(file)
    return Source(SAMPLE_RATE, reader.blocks(), reader.notes)


def open_whole(file: str) -> str | bytes:
    """An audio file to be read once or twice: its path, or all that a pipe or standard input ("-") has.

    Raises:
        AudioError: no such file, not readable, standard input is a terminal, or there is too much of it.
    """
    if file != STDIN:
        return held(file)
    if sys.stdin.isatty():
        raise AudioError("standard input is a terminal; expected an audio file, e.g. - < recording.wav")
    return held(sys.stdin.buffer)


def read_raw(raw: BinaryIO, notes: list[str]) -> Iterator[Pcm]:
    """Little-endian int16 samples of a binary file, as they come: samples may be cut in two between reads.

    Raises:
        AudioError: no sample at all, or it is a file with a header.
    """
    head = rest = b""
    while data := raw.read1(_READ):  # type: ignore[attr-defined]  # all buffered readers have it
        head = (head + data)[:4]
        if head.startswith(_CONTAINERS):
            raise AudioError(f"standard input begins with {head!r}, like a file with a header; {_ADVICE}")
        rest += data
        whole = len(rest) // 2 * 2
        if whole:
            yield np.frombuffer(rest[:whole], "<i2").astype(np.int16)
        rest = rest[whole:]
    if len(head) < 2:
        raise AudioError(f"standard input ended before the first sample; {_ADVICE}")
    if rest:
        notes.append("the last byte, half a sample, was left out")


def chunks(pieces: Iterable[Pcm], size: int) -> Iterator[Pcm]:
    """The same samples in pieces of at most `size`."""
    for piece in pieces:
        for first in range(0, len(piece), size):
            yield piece[first : first + size]


def at_own_speed(
    pieces: Iterable[Pcm],
    rate: int,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Pcm]:
    """The same samples at the times at which a microphone would have recorded them.

    A piece is handed out when its last sample is recorded; one that is asked for late has all that is recorded by then.
    """
    started, samples = clock(), 0
    recorded: list[Pcm] = []
    for piece in pieces:
        samples += len(piece)
        due = started + samples / rate
        if recorded and clock() < due:
            yield np.concatenate(recorded)
            recorded = []
        if (wait := due - clock()) > 0:
            sleep(wait)
        recorded.append(piece)
    if recorded:
        yield np.concatenate(recorded)


def _deepened(raw: BinaryIO) -> BinaryIO:
    """The same file; a pipe holds more, so that a recorder in front of it is not held up by one slow update."""
    if sys.platform == "linux":
        import fcntl

        # Not every file has a descriptor, and a user may have used up what pipes may hold: then it stays as it is.
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.fstat(raw.fileno()).st_mode):
                fcntl.fcntl(raw, fcntl.F_SETPIPE_SZ, _READ)
    return raw
