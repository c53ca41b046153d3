"""What to synthesize. Read by the command line, too: importing it imports no PyTorch."""

import math
from dataclasses import dataclass

from salmonrun.runtime.errors import ConfigError

SNR_DB = (10.0, 40.0)
MAX_SPEED = 0.5


@dataclass(frozen=True)
class Plan:
    """How many recordings of each kind, and how they are varied."""

    speech: int = 8000
    sounds: int = 2000
    mixtures: int = 1000
    seed: int = 0
    snr_db: tuple[float, float] = SNR_DB  # lowest and highest, of the noise in half of the recordings of speech alone
    speed: float = 0.0  # share by which voices are played faster or slower, at most: more kinds of voices to learn from

    def __post_init__(self) -> None:
        low, high = self.snr_db
        if not -math.inf < low <= high < math.inf:
            raise ConfigError(f"snr_db is {low:g} to {high:g}; expected two numbers of dB, the lower one first")
        if not 0 <= self.speed <= MAX_SPEED:
            raise ConfigError(f"speed is {self.speed:g}; expected a share from 0 to {MAX_SPEED:g}")
        if min(self.speech, self.sounds, self.mixtures) < 0 or self.speech + self.sounds + self.mixtures == 0:
            raise ConfigError(
                f"the numbers of speech, sounds and mixtures must be 0 or more, and not all 0; got {self}"
            )
