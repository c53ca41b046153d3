"""Text-to-speech engines: what each must offer, and which of a user's voices are held out."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from salmonrun.runtime.audio import F32
from salmonrun.training.synthesis.texts import HELD_OUT_SHARE


class SpeechSynthesizer(Protocol):
    """One text-to-speech program or model. Small and picklable: models are loaded once a process, when first needed."""

    @property
    def name(self) -> str:
        """Its name in annotations and on the command line."""

    def require(self) -> None:
        """Check that it can run.

        Raises:
            MissingExtraError: it is not installed; says how to.
            ConfigError: its voices are not in the folder that was named.
        """

    def voices(self, held_out: bool) -> tuple[str, ...]:
        """Voices of the training or of the held-out set; the two never share a speaker."""

    def synthesize(self, text: str, voice: str, rng: np.random.Generator, scratch: Path) -> F32:
        """Speak a text at a random rate: PCM [N] at 16 kHz, repeatable by `rng`. `scratch` may be overwritten."""


@dataclass(frozen=True)
class Voice:
    """A voice, and what speaks with it."""

    synthesizer: SpeechSynthesizer
    name: str

    @property
    def label(self) -> str:
        """Names the voice in annotations."""
        return f"{self.synthesizer.name}:{self.name}"


def split_voices(
    voices: Iterable[str], held_out: bool, speaker: Callable[[str], str] = lambda voice: voice
) -> tuple[str, ...]:
    """The held-out tenth of a user's voices, or the others.

    Held out are the speakers whose names hash lowest: at least one, unless there is no other. `speaker` says whose
    voice it is, so that two voices of one speaker are on the same side.
    """
    voices = tuple(voices)
    speakers = sorted({speaker(voice) for voice in voices}, key=lambda name: hashlib.sha256(name.encode()).digest())
    count = max(1, len(speakers) // HELD_OUT_SHARE) if len(speakers) > 1 else 0
    kept = set(speakers[:count] if held_out else speakers[count:])
    return tuple(voice for voice in voices if speaker(voice) in kept)
