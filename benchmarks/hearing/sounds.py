"""Minutes of sounds in which nobody speaks."""

from collections.abc import Sequence

import numpy as np

from benchmarks.hearing.speech import to_level
from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.training.synthesis.sounds import CAPTIONS, make_sound

LEVELS_DB = (-40.0, -15.0)  # dBFS of an event
FLOOR_DB = (-70.0, -55.0)  # of the noise behind all of them
GAP_S = 1.5  # the longest between two events
MUSIC_SHARE = 0.35  # of the events


def landscape(rng: np.random.Generator, seconds: float, recorded: Sequence[F32] = ()) -> F32:
    """Alarms, birds, engines, rain, music and more, one after another: PCM [N] at 16 kHz.

    Args:
        recorded: music to take pieces of; without any, chords are made.
    """
    samples = round(seconds * SAMPLE_RATE)
    pcm = rng.standard_normal(samples, dtype=np.float32) * np.float32(10 ** (rng.uniform(*FLOOR_DB) / 20))
    at = 0
    while at < samples:
        event = to_level(_event(rng, recorded), rng.uniform(*LEVELS_DB))[: samples - at]
        pcm[at : at + len(event)] += event
        at += len(event) + round(rng.uniform(0, GAP_S) * SAMPLE_RATE)
    return pcm.clip(-1, 1)


def _event(rng: np.random.Generator, recorded: Sequence[F32]) -> F32:
    if rng.random() >= MUSIC_SHARE:
        return make_sound(str(rng.choice(sorted(CAPTIONS))), rng, rng.uniform(1, 8))
    length = round(rng.uniform(4, 15) * SAMPLE_RATE)
    if not recorded:
        return _chords(rng, length)
    piece = recorded[int(rng.integers(len(recorded)))]
    start = int(rng.integers(0, len(piece) - length))
    return piece[start : start + length]


def _chords(rng: np.random.Generator, samples: int) -> F32:
    """Three notes with overtones every half second, struck and dying away."""
    time = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    envelope = np.minimum(1, time / 0.01) * np.exp(-3 * time)
    chords = []
    for _ in range(-(-samples // len(time))):
        notes = 110 * 2 ** (rng.integers(0, 36, size=3) / 12)
        tones = [np.sin(2 * np.pi * note * k * time) / k for note in notes for k in range(1, 5)]
        chords.append(np.sum(tones, axis=0) * envelope)
    return np.concatenate(chords)[:samples].astype(np.float32)
