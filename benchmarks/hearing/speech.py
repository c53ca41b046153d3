"""Held-out voices that say held-out sentences, and how loud speech is."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.training.data.acoustics import trim
from salmonrun.training.synthesis.programs import DEFAULT_SYNTHESIZERS
from salmonrun.training.synthesis.synthesizer import Voice
from salmonrun.training.synthesis.texts import draw_sentence
from salmonrun.training.synthesis.voices import voices

FRAME = SAMPLE_RATE // 100
LEVEL_DB = -26.0  # dBFS of speech, as ITU-T P.56 recordings have it
EDGE_S = 0.05  # left in front of and behind the voice


@dataclass(frozen=True, eq=False)
class Sentence:
    """What one voice says, without silence around it."""

    text: str
    pcm: F32  # [N] at 16 kHz, its level LEVEL_DB


def speak(count: int, seed: int) -> list[Sentence]:
    """Sentences by voices that the demo has not heard in training; the same for the same seed.

    Raises:
        MissingExtraError: espeak-ng or flite is not installed.
    """
    for synthesizer in DEFAULT_SYNTHESIZERS:
        synthesizer.require()
    cast = voices(DEFAULT_SYNTHESIZERS, held_out=True)
    with TemporaryDirectory() as folder:
        scratch = Path(folder, "said.wav")
        counted = tqdm(range(count), desc="voices", unit="sentence")
        return [_speak(cast, np.random.default_rng([seed, index]), scratch) for index in counted]


def _speak(cast: list[Voice], rng: np.random.Generator, scratch: Path) -> Sentence:
    voice = cast[rng.integers(len(cast))]
    text = draw_sentence(rng, held_out=True)
    pcm = voice.synthesizer.synthesize(text, voice.name, rng, scratch)
    return Sentence(text, to_level(trim(pcm, EDGE_S), LEVEL_DB))


def level(pcm: F32) -> float:
    """dBFS of the louder half of its frames: pauses do not make speech quieter."""
    power = np.sort(np.square(pcm[: len(pcm) // FRAME * FRAME].reshape(-1, FRAME)).mean(axis=1))
    return 10 * float(np.log10(power[len(power) // 2 :].mean() + 1e-12))


def to_level(pcm: F32, wanted_db: float) -> F32:
    """Louder or quieter, to a level in dBFS."""
    return (pcm * 10 ** ((wanted_db - level(pcm)) / 20)).astype(np.float32)
