"""Music of a kind: melodies, chords and drums by chance. Nobody speaks in it, and it is like speech in all else."""

import numpy as np

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.features import F64

SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9))  # major, minor, pentatonic; semitones
LOWEST_HZ = 55.0
HIGHEST = 8  # harmonic of an instrument


def make_tune(rng: np.random.Generator, seconds: float) -> F32:
    """A few instruments, and drums in half of the tunes: PCM [N] at 16 kHz, peak 1."""
    length = round(seconds * SAMPLE_RATE)
    beat_s = rng.uniform(0.25, 0.7)
    scale = SCALES[rng.integers(len(SCALES))]
    tonic = LOWEST_HZ * 2 ** (rng.integers(0, 12) / 12)
    tune = np.zeros(length)
    for _ in range(rng.integers(1, 4)):
        tune += _part(rng, length, beat_s, scale, tonic) * rng.uniform(0.3, 1.0)
    if rng.random() < 0.5:
        tune += _drums(rng, length, beat_s) * rng.uniform(0.2, 0.8)
    return (tune / max(1e-9, float(np.abs(tune).max()))).astype(np.float32)


def _part(rng: np.random.Generator, length: int, beat_s: float, scale: tuple[int, ...], tonic: float) -> F64:
    """One instrument: single notes or chords, which move by steps of the scale."""
    part = np.zeros(length + 4 * SAMPLE_RATE)
    harmonics = rng.uniform(0, 1, HIGHEST) / np.arange(1, HIGHEST + 1) ** rng.uniform(0.5, 2.0)
    fall_s, rise_s = rng.uniform(0.15, 1.5), rng.uniform(0.005, 0.1)
    vibrato = rng.uniform(0, 0.01)
    octave, step = int(rng.integers(0, 4)), int(rng.integers(len(scale)))
    chord = (0, 2, 4) if rng.random() < 0.4 else (0,)
    at = 0.0
    while at * SAMPLE_RATE < length:
        beats = float(rng.choice([0.5, 1.0, 1.0, 2.0]))
        time = np.arange(round(min(3.5, beats * beat_s + fall_s) * SAMPLE_RATE)) / SAMPLE_RATE
        envelope = np.minimum(1, time / rise_s) * np.exp(-time / fall_s)
        for degree in (step + third for third in chord):
            semitones = scale[degree % len(scale)] + 12 * (octave + degree // len(scale))
            part[round(at * SAMPLE_RATE) :][: len(time)] += envelope * _note(
                tonic * 2 ** (semitones / 12), harmonics, vibrato, time
            )
        step = int(np.clip(step + rng.integers(-2, 3), 0, 2 * len(scale)))
        at += beats * beat_s
        if rng.random() < 0.1:  # a rest
            at += beat_s
    return part[:length]


def _note(pitch: float, harmonics: F64, vibrato: float, time: F64) -> F64:
    phase = 2 * np.pi * pitch * (time + vibrato / 5 * np.sin(2 * np.pi * 5 * time) / (2 * np.pi))
    audible = [k for k in range(1, len(harmonics) + 1) if k * pitch < SAMPLE_RATE / 2]
    return np.asarray(sum(harmonics[k - 1] * np.sin(k * phase) for k in audible), np.float64)


def _drums(rng: np.random.Generator, length: int, beat_s: float) -> F64:
    """A low drum on some beats, noise on others."""
    drums = np.zeros(length + SAMPLE_RATE)
    time = np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
    low = np.sin(2 * np.pi * 70 * time * (1 + np.exp(-time / 0.02))) * np.exp(-time / 0.08)
    for index in range(int(length / SAMPLE_RATE / (beat_s / 2)) + 1):
        hit = low if index % 4 == 0 else rng.standard_normal(len(time)) * np.exp(-time / rng.uniform(0.01, 0.06))
        if index % 4 == 0 or rng.random() < 0.6:
            drums[round(index * beat_s / 2 * SAMPLE_RATE) :][: len(time)] += hit * rng.uniform(0.3, 1.0)
    return drums[:length]
