"""What to synthesize. Read by the command line, too: importing it imports no PyTorch."""

import math
from dataclasses import dataclass

from salmonrun.runtime.errors import ConfigError
from salmonrun.training.data.config import MAX_SPEED

SNR_DB = (10.0, 40.0)


@dataclass(frozen=True)
class Plan:
    """How many recordings of each kind, and how they are varied."""

    speech: int = 8000
    sounds: int = 2000
    mixtures: int = 1000
    others: int = 0  # speech in other words and languages, and music: not to be written down
    seed: int = 0
    snr_db: tuple[float, float] = SNR_DB  # lowest and highest, of the noise in half of the recordings of speech alone
    pauses: float = 0.0  # share of the speech that is spoken in pieces, with pauses between them
    fragments: float = 0.0  # share of the speech that is one to three words of a sentence
    nothing: str = ""  # what is to be written down of sounds and others; empty: they are not asked about
    speed: float = 0.0  # share by which voices are played faster or slower, at most: more kinds of voices to learn from

    def __post_init__(self) -> None:
        low, high = self.snr_db
        if not -math.inf < low <= high < math.inf:
            raise ConfigError(f"snr_db is {low:g} to {high:g}; expected two numbers of dB, the lower one first")
        if not 0 <= self.speed <= MAX_SPEED:
            raise ConfigError(f"speed is {self.speed:g}; expected a share from 0 to {MAX_SPEED:g}")
        for name in ("pauses", "fragments"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name):g}; expected a share from 0 to 1")
        counts = (self.speech, self.sounds, self.mixtures, self.others)
        if min(counts) < 0 or not any(counts):
            raise ConfigError(f"the numbers of recordings must be 0 or more, and not all 0; got {self}")
        if self.others and not self.nothing:
            raise ConfigError(f"{self.others} recordings of others have no text; expected one in nothing")
