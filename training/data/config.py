"""Which recordings a run draws, and what it does to them."""

from dataclasses import dataclass
from typing import Literal

from salmonrun.runtime.errors import ConfigError


@dataclass(frozen=True)
class DataSet:
    """An annotation file, and how its entries are drawn."""

    annotation: str
    prefix: str | None = None  # folder of relative paths; None: the annotation's own
    weight: float = 1.0  # how often its entries are drawn, relative to other data sets
    tasks: tuple[str, ...] | None = None  # only entries of these; None: all

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"weight is {self.weight:g}; it must be above 0 (leave the data set out instead)")


@dataclass(frozen=True)
class DataConfig:
    """The data sets of a run, and how their entries are read."""

    train: tuple[DataSet, ...]
    valid: tuple[DataSet, ...] = ()  # measured at every snapshot
    on_broken: Literal["stop", "skip"] = "stop"  # entries that cannot be used: stop before training, or report and skip
    lenient: bool = False  # ignore keys of annotations that are not known, with a warning; else they break an entry
    multi_prompt: bool = True  # draw one of a task's prompts for each sample; else its first
    # Folder that keeps what is computed before the first trained part, from one epoch to the next: encoder states, or
    # spectrograms where an encoder is trained. It may grow to many times the recordings' size.
    cache: str | None = None


@dataclass(frozen=True)
class Augmentation:
    """What is done to recordings while training. A probability of 0 turns a kind off."""

    pause_p: float = 0.0  # silence in front and behind, each of up to so many seconds, as a stream has it
    pause_s: float = 1.5
    noise_p: float = 0.0  # Gaussian noise of an amplitude between the two
    noise_low: float = 0.001
    noise_high: float = 0.015
    gain_p: float = 0.0
    gain_db: float = 12.0  # up or down, at most
    noise_files: tuple[str, ...] = ()  # recordings of noise, or folders of them
    noise_files_p: float = 0.0  # one of them, at a signal-to-noise ratio between the two
    noise_files_low_db: float = 5.0
    noise_files_high_db: float = 30.0
    mask_p: float = 0.0  # SpecAugment on both spectrograms
    mask_time_s: float = 0.1
    mask_bins: int = 12
    masks: int = 2

    def __post_init__(self) -> None:
        for name in ("pause_p", "noise_p", "gain_p", "noise_files_p", "mask_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}; a probability is from 0 to 1")
        for low, high in (("noise_low", "noise_high"), ("noise_files_low_db", "noise_files_high_db")):
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(f"augment.{low} {getattr(self, low)} is more than {high} {getattr(self, high)}")
        if self.noise_files_p and not self.noise_files:
            raise ConfigError("augment.noise_files_p without noise_files: name recordings of noise or a folder of them")

        least_of = {"mask_bins": 1, "masks": 0, "mask_time_s": 0, "gain_db": 0, "noise_low": 0, "pause_s": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}; it must be at least {least}")

    @property
    def changes_waveform(self) -> bool:
        """Whether spectrograms differ from one epoch to the next."""
        return bool(self.pause_p or self.noise_p or self.gain_p or self.noise_files_p)
