"""One case of damaged audio: a file of any container and codec that libsndfile writes, changed, is read or refused."""

import functools
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.config import Limits
from salmonrun.runtime.errors import AudioError
from salmonrun.runtime.longform.reader import PcmReader

Rng = np.random.Generator

# RAW has no header that could lie, SD2 keeps its own beside the file.
KINDS = tuple(
    (container, codec)
    for container in soundfile.available_formats()
    if container not in ("RAW", "SD2")
    for codec in soundfile.available_subtypes(container)
)
RATES = (8000, 16000, 22050, 48000)  # Hz
SECONDS = 0.4
EDGES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
HEADER = 128  # bytes: most of what a file claims stands there


def prepare(folder: Path) -> None:
    """Nothing: every mutant is made from the beginning."""


def run(seed: int, index: int, folder: Path, material: Path) -> str:
    """The case of this number: "refused", "late" (its header was taken, and then what is behind it refused) or "ran".

    Raises:
        Exception: any other error than an AudioError, which is a finding; so is a crash, and so are samples that are
            not finite.
    """
    rng = np.random.default_rng((seed, index))
    content = mutant(rng, index)
    source: bytes | Path = content
    if index % 5 == 0:
        source = folder / "mutant"
        source.write_bytes(content)
    with quiet():
        return _read(source, Limits(isolate_decoding=index % 16 == 0), whole=index % 2 == 1)


def _read(source: bytes | Path, limits: Limits, whole: bool) -> str:
    try:
        reader = PcmReader(source, limits=limits)
    except AudioError:
        return "refused"
    try:
        pcm = load_audio(source, min_s=0.0, limits=limits).pcm if whole else np.concatenate(list(reader.blocks()))
    except AudioError:
        return "late"
    assert np.isfinite(pcm).all()
    return "ran"


@contextmanager
def quiet() -> Iterator[None]:
    """Decoders print, more than who waits for the end of this process reads meanwhile."""
    nowhere, kept = os.open(os.devnull, os.O_WRONLY), [os.dup(1), os.dup(2)]
    try:
        for standard in (1, 2):
            os.dup2(nowhere, standard)
        yield
    finally:
        for standard, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, standard)
        for descriptor in (nowhere, *kept):
            os.close(descriptor)


def mutant(rng: Rng, index: int) -> bytes:
    """A file whose container and codec the number tells, with up to five changes."""
    content = bytearray(whole(index % len(KINDS), int(rng.integers(4))))
    for _ in range(int(rng.choice([1, 1, 1, 2, 3, 5]))):
        CHANGES[int(rng.integers(len(CHANGES)))](rng, content)
    return bytes(content)


@functools.cache
def whole(kind: int, variant: int) -> bytes:
    """A tone and noise as a file, at a rate and with channels that it can have; empty where libsndfile, despite its
    list, does not write this."""
    container, codec = KINDS[kind]
    rate, channels = RATES[variant], 1 + variant % 2
    time = np.arange(int(SECONDS * rate)) / rate
    tone = 0.4 * np.sin(2 * math.pi * 300 * time) + np.random.default_rng(variant).normal(0, 0.02, len(time))
    for said, heard in ((rate, channels), (rate, 1), (16000, 1), (8000, 1)):
        file = io.BytesIO()
        try:
            soundfile.write(file, np.stack([tone] * heard, 1), said, format=container, subtype=codec)
        except (soundfile.SoundFileError, ValueError):
            continue
        return file.getvalue()
    return b""


def _place(rng: Rng, content: bytearray) -> int:
    """Mostly in the header."""
    end = min(HEADER, len(content)) if rng.random() < 0.7 else len(content)
    return int(rng.integers(max(1, end)))


def _flip(rng: Rng, content: bytearray) -> None:
    for _ in range(int(rng.integers(1, 9))):
        if content:
            content[_place(rng, content)] ^= 1 << int(rng.integers(8))


def _byte(rng: Rng, content: bytearray) -> None:
    if content:
        content[_place(rng, content)] = int(rng.integers(256))


def _number(rng: Rng, content: bytearray) -> None:
    """A field of 1 to 8 bytes, in either order, becomes a number at the edge of something."""
    size = int(rng.choice([1, 2, 4, 4, 8]))
    value = EDGES[int(rng.integers(len(EDGES)))] + int(rng.integers(-1, 2))
    order = "little" if rng.random() < 0.5 else "big"
    start = _place(rng, content)
    content[start : start + size] = (value % 2 ** (8 * size)).to_bytes(size, order)


def _cut(rng: Rng, content: bytearray) -> None:
    del content[int(rng.integers(len(content) + 1)) :]


def _remove(rng: Rng, content: bytearray) -> None:
    start = _place(rng, content)
    del content[start : start + int(rng.integers(1, 64))]


def _insert(rng: Rng, content: bytearray) -> None:
    start = _place(rng, content)
    content[start:start] = rng.bytes(int(rng.integers(1, 64)))


def _repeat(rng: Rng, content: bytearray) -> None:
    start, length = _place(rng, content), int(rng.integers(1, 256))
    content[start:start] = content[start : start + length] * int(rng.integers(1, 9))


def _fill(rng: Rng, content: bytearray) -> None:
    start, length = _place(rng, content), int(rng.integers(1, 4096))
    length = len(content[start : start + length])
    content[start : start + length] = bytes([int(rng.choice([0, 255, 127, 128]))]) * length


def _noise(rng: Rng, content: bytearray) -> None:
    start, length = _place(rng, content), int(rng.integers(1, 512))
    length = len(content[start : start + length])
    content[start : start + length] = rng.bytes(length)


def _other(rng: Rng, content: bytearray) -> None:
    """The beginning of one file in front of the rest of another."""
    other = whole(int(rng.integers(len(KINDS))), 0)
    end = int(rng.integers(HEADER))
    content[:end] = other[:end]


CHANGES = (_flip, _flip, _byte, _number, _number, _number, _cut, _remove, _insert, _repeat, _fill, _noise, _other)
