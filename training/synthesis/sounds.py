"""A dozen kinds of sound events, each with its caption."""

from collections.abc import Callable

import numpy as np

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.features import F64

Rng = np.random.Generator


def make_sound(kind: str, rng: Rng, seconds: float) -> F32:
    """One event of a kind in CAPTIONS: PCM [N] at 16 kHz, peak 1."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    sound = _MAKERS[kind](rng, time)
    return (sound / max(1e-9, float(np.abs(sound).max()))).astype(np.float32)


def _sine(frequency: F64 | float, time: F64) -> F64:
    """A tone of constant or gliding frequency in Hz."""
    return np.sin(2 * np.pi * np.cumsum(np.broadcast_to(frequency, time.shape)) / SAMPLE_RATE)


def _noise(rng: Rng, time: F64, low: float, high: float) -> F64:
    """Noise between two frequencies in Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    bins = np.fft.rfftfreq(len(time), 1 / SAMPLE_RATE)
    return np.fft.irfft(spectrum * ((bins >= low) & (bins <= high)), len(time))


def _hits(rng: Rng, time: F64, rate: float, hit: F64, jitter: float = 0.1) -> F64:
    """The sound `hit` repeated `rate` times a second."""
    sound = np.zeros(len(time) + len(hit))
    at = rng.uniform(0, 0.3)
    while at < time[-1]:
        start = int(at * SAMPLE_RATE)
        sound[start : start + len(hit)] += hit * rng.uniform(0.7, 1.0)
        at += (1 / rate) * rng.uniform(1 - jitter, 1 + jitter)
    return sound[: len(time)]


def _decay(seconds: float, fall: float) -> tuple[F64, F64]:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return time, np.exp(-time / fall)


def _steady_tone(rng: Rng, time: F64) -> F64:
    return _sine(rng.uniform(300, 2500), time)


def _beeps(rng: Rng, time: F64) -> F64:
    rate = rng.uniform(1.5, 4)
    return _sine(rng.uniform(700, 2500), time) * ((time * rate) % 1 < 0.5)


def _siren(rng: Rng, time: F64) -> F64:
    low = rng.uniform(400, 700)
    swing = (1 + np.sin(2 * np.pi * rng.uniform(0.3, 0.9) * time + rng.uniform(0, 6))) / 2
    return _sine(low + rng.uniform(500, 900) * swing, time)


def _birds(rng: Rng, time: F64) -> F64:
    length, envelope = _decay(rng.uniform(0.08, 0.15), 0.06)
    chirp = _sine(np.linspace(rng.uniform(3500, 5500), rng.uniform(2500, 6500), len(length)), length) * envelope
    return _hits(rng, time, rng.uniform(3, 7), chirp, 0.4)


def _static(rng: Rng, time: F64) -> F64:
    return _noise(rng, time, 50, 8000)


def _rain(rng: Rng, time: F64) -> F64:
    drops = np.zeros(len(time))
    where = rng.integers(0, len(time), int(rng.uniform(60, 160) * time[-1]))
    drops[where] = rng.standard_normal(len(where)) * 6
    kernel = np.exp(-np.arange(200) / 25) * np.sin(np.arange(200) * rng.uniform(0.9, 1.4))
    return np.convolve(drops, kernel)[: len(time)] + _noise(rng, time, 1000, 6000) * rng.uniform(0.2, 0.5)


def _wind(rng: Rng, time: F64) -> F64:
    gusts = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.2, 0.6) * time + rng.uniform(0, 6))
    return _noise(rng, time, 60, rng.uniform(400, 700)) * gusts


def _motor(rng: Rng, time: F64) -> F64:
    pitch = rng.uniform(45, 95) * (1 + 0.03 * np.sin(2 * np.pi * rng.uniform(0.3, 1) * time))
    return np.asarray(sum(_sine(k * pitch, time) / k for k in range(1, 9))) + 0.2 * _noise(rng, time, 50, 500)


def _clicks(rng: Rng, time: F64) -> F64:
    length, envelope = _decay(0.004, 0.001)
    return _hits(rng, time, rng.uniform(2, 8), rng.standard_normal(len(length)) * envelope)


def _knocks(rng: Rng, time: F64) -> F64:
    length, envelope = _decay(0.12, 0.025)
    hit = _sine(rng.uniform(120, 260), length) * envelope + 0.3 * rng.standard_normal(len(length)) * envelope**3
    return _hits(rng, time, rng.uniform(2.5, 4.5), hit)


def _bell(rng: Rng, time: F64) -> F64:
    length, envelope = _decay(1.2, 0.4)
    pitch = rng.uniform(500, 1200)
    hit = sum(_sine(pitch * k, length) * envelope**k / k for k in (1.0, 2.0, 2.76, 5.4))
    return _hits(rng, time, rng.uniform(0.8, 1.5), np.asarray(hit))


def _telephone(rng: Rng, time: F64) -> F64:
    low = rng.uniform(420, 460)
    trill = _sine(low, time) + _sine(low * 1.09, time) * (1 + np.sin(2 * np.pi * 20 * time))
    return trill * ((time * rng.uniform(0.9, 1.2)) % 1 < 0.55)


_MAKERS: dict[str, Callable[[Rng, F64], F64]] = {
    "tone": _steady_tone,
    "beeps": _beeps,
    "siren": _siren,
    "birds": _birds,
    "static": _static,
    "rain": _rain,
    "wind": _wind,
    "engine": _motor,
    "clicks": _clicks,
    "knocking": _knocks,
    "bell": _bell,
    "telephone": _telephone,
}

# By kind.
CAPTIONS = {
    "tone": "a steady tone sounds",
    "beeps": "an alarm beeps",
    "siren": "a siren wails",
    "birds": "birds are singing",
    "static": "static noise hisses",
    "rain": "rain is falling",
    "wind": "the wind is blowing",
    "engine": "an engine is running",
    "clicks": "something is clicking",
    "knocking": "someone knocks on a door",
    "bell": "a bell is ringing",
    "telephone": "a telephone rings",
}
