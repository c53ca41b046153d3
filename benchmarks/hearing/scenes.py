"""Recordings to be heard: sentences with pauses, sounds, noise and telephones between, before and behind them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import soxr

from benchmarks.hearing.sounds import landscape
from benchmarks.hearing.speech import LEVEL_DB, Sentence, to_level
from salmonrun.runtime.audio import F32, SAMPLE_RATE

FLOOR_DB = -70.0  # dBFS of the noise that every room has
LOUD_DB = -10.0  # of speech, about as loud as it can be without clipping
TELEPHONE_HZ = (300.0, 3400.0)
Rng = np.random.Generator


@dataclass(frozen=True)
class Spoken:
    """Where a sentence is."""

    text: str
    start: int  # sample
    end: int  # sample after the last


@dataclass(frozen=True, eq=False)
class Scene:
    """A recording, and what is said in it."""

    name: str
    pcm: F32  # [N] at 16 kHz
    spoken: tuple[Spoken, ...]


def scenes(sentences: Sequence[Sentence], seed: int, sounds_s: Sequence[float], only_sounds_s: float) -> list[Scene]:
    """All of them, the same for the same seed.

    Args:
        sentences: all of them with pauses between them, half of them in all else.
        sounds_s: how long sounds are before somebody speaks.
        only_sounds_s: of the recording in which nobody does.
    """
    pauses: dict[str, Callable[[Rng], F32]] = {
        "pauses of 0.3 to 2 s": partial(pause, low=0.3, high=2.0),
        "pauses of 0.2 to 2.5 s": partial(pause, low=0.2, high=2.5),
        "pauses of 0.75 s": partial(pause, low=0.75, high=0.75),
    }
    rng = np.random.default_rng(seed)
    made = [join(name, sentences, make, rng) for name, make in pauses.items()]
    sentences = sentences[: len(sentences) // 2]
    mixed = join(made[1].name, sentences, pauses[made[1].name], rng)
    made.append(join("levels from -35 to 0 dB", at_levels(sentences, rng), pauses[mixed.name], rng))
    made.append(over_telephone(mixed))
    made += [in_noise(mixed, rng, snr_db) for snr_db in (20.0, 10.0, 5.0)]
    made.append(join("sounds before, between and behind", sentences, sounds_between, rng))
    half = len(sentences) // 2
    for seconds in sounds_s:
        after = join(f"after {seconds:g} s of sounds", sentences[:half], pauses[mixed.name], rng)
        made.append(behind(after, landscape(rng, seconds)))
    only = landscape(rng, only_sounds_s)
    return [*made, Scene(f"{only_sounds_s / 60:g} minutes of sounds alone", only, ())]


def join(name: str, sentences: Sequence[Sentence], between: Callable[[Rng], F32], rng: Rng) -> Scene:
    """One sentence after another, with something before, between and behind them, in a quiet room."""
    parts, spoken, at = [between(rng)], [], 0
    for sentence in sentences:
        at = sum(map(len, parts))
        spoken.append(Spoken(sentence.text, at, at + len(sentence.pcm)))
        parts += [sentence.pcm, between(rng)]
    pcm = np.concatenate(parts)
    return Scene(name, np.clip(pcm + _floor(rng, len(pcm)), -1, 1), tuple(spoken))


def pause(rng: Rng, low: float, high: float) -> F32:
    """Nothing, for so many seconds."""
    return np.zeros(round(rng.uniform(low, high) * SAMPLE_RATE), np.float32)


def sounds_between(rng: Rng) -> F32:
    """A few seconds of sounds, and pauses around them."""
    return np.concatenate([pause(rng, 0.2, 1.0), landscape(rng, rng.uniform(2, 8)), pause(rng, 0.2, 1.0)])


def at_levels(sentences: Sequence[Sentence], rng: Rng) -> list[Sentence]:
    """From close by to far away."""
    return [replace(one, pcm=to_level(one.pcm, LOUD_DB + rng.uniform(-35, 0))) for one in sentences]


def over_telephone(scene: Scene) -> Scene:
    """What a telephone line leaves: 300 to 3400 Hz, 8 kHz."""
    narrow = soxr.resample(scene.pcm, SAMPLE_RATE, SAMPLE_RATE // 2)
    spectrum = np.fft.rfft(narrow)
    hertz = np.fft.rfftfreq(len(narrow), 2 / SAMPLE_RATE)
    spectrum[(hertz < TELEPHONE_HZ[0]) | (hertz > TELEPHONE_HZ[1])] = 0
    wide = soxr.resample(np.fft.irfft(spectrum, len(narrow)), SAMPLE_RATE // 2, SAMPLE_RATE)
    pcm = np.pad(wide, (0, max(0, len(scene.pcm) - len(wide))))[: len(scene.pcm)].astype(np.float32)
    return Scene("telephone", pcm, scene.spoken)


def in_noise(scene: Scene, rng: Rng, snr_db: float) -> Scene:
    """With sounds behind all of it, speech so many dB above them."""
    noise = to_level(landscape(rng, len(scene.pcm) / SAMPLE_RATE), LEVEL_DB - snr_db)
    return Scene(f"sounds behind it, {snr_db:g} dB below", np.clip(scene.pcm + noise, -1, 1), scene.spoken)


def behind(scene: Scene, sounds: F32) -> Scene:
    """After so many sounds."""
    shifted = tuple(Spoken(one.text, one.start + len(sounds), one.end + len(sounds)) for one in scene.spoken)
    return Scene(scene.name, np.concatenate([sounds, scene.pcm]), shifted)


def _floor(rng: Rng, samples: int) -> F32:
    return rng.standard_normal(samples, dtype=np.float32) * np.float32(10 ** (FLOOR_DB / 20))
