"""Which recordings a run draws, and what it does to them."""

from dataclasses import dataclass
from typing import Literal

from salmonrun.runtime.errors import ConfigError

MAX_SPEED = 0.5
# The least values of settings of Augmentation.
LEAST_OF = {
    **dict.fromkeys(("mask_bins", "inner_pauses"), 1),
    **dict.fromkeys(
        ("masks", "mask_time_s", "gain_db", "noise_low", "pause_s", "around_s", "inner_pause_s", "pitch"), 0
    ),
    "reverb_s": 0.1,
}


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

    speed_p: float = 0.0  # played faster or slower by up to this share
    speed: float = 0.1
    pitch_p: float = 0.0  # higher or lower by up to so many semitones, at the same speed
    pitch: float = 2.0
    inner_pause_p: float = 0.0  # silence where the recording is quiet, at up to so many places, each of up to so long
    inner_pause_s: float = 0.8
    inner_pauses: int = 3
    reverb_p: float = 0.0  # a room of a reverberation time up to so long
    reverb_s: float = 0.5
    around_p: float = 0.0  # one of noise_files in front, another behind, each of up to so many seconds
    around_s: float = 1.5
    pause_p: float = 0.0  # silence in front and behind, each of up to so many seconds, as a stream has it
    pause_s: float = 1.5
    noise_p: float = 0.0  # Gaussian noise of an amplitude between the two
    noise_low: float = 0.001
    noise_high: float = 0.015
    band_p: float = 0.0  # a telephone line's band
    level_p: float = 0.0  # a peak between the two, in dB below full scale
    level_low_db: float = -35.0
    level_high_db: float = 0.0
    gain_p: float = 0.0
    gain_db: float = 12.0  # up or down, at most
    noise_files: tuple[str, ...] = ()  # recordings of noise, or folders of them
    noise_files_p: float = 0.0  # one of them, at a signal-to-noise ratio between the two
    noise_files_low_db: float = 5.0
    noise_files_high_db: float = 30.0
    noise_files_tasks: tuple[str, ...] | None = None  # only entries of these, for around_p, too; None: all
    mask_p: float = 0.0  # SpecAugment on both spectrograms
    mask_time_s: float = 0.1
    mask_bins: int = 12
    masks: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_p") and not 0 <= value <= 1:
                raise ConfigError(f"augment.{name} is {value}; a probability is from 0 to 1")
        pairs = (
            ("noise_low", "noise_high"),
            ("noise_files_low_db", "noise_files_high_db"),
            ("level_low_db", "level_high_db"),
        )
        for low, high in pairs:
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(f"augment.{low} {getattr(self, low)} is more than {high} {getattr(self, high)}")
        if self.level_high_db > 0:
            raise ConfigError(f"augment.level_high_db is {self.level_high_db}; full scale is 0 dB")
        for name in ("noise_files_p", "around_p"):
            if getattr(self, name) and not self.noise_files:
                raise ConfigError(f"augment.{name} without noise_files: name recordings of noise or a folder of them")
        if not 0 <= self.speed <= MAX_SPEED:
            raise ConfigError(f"augment.speed is {self.speed}; expected a share from 0 to {MAX_SPEED:g}")
        for name, least in LEAST_OF.items():
            if getattr(self, name) < least:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}; it must be at least {least}")

    @property
    def changes_waveform(self) -> bool:
        """Whether spectrograms differ from one epoch to the next."""
        return any(value for name, value in vars(self).items() if name.endswith("_p") and name != "mask_p")
