"""How a long recording is cut."""

from dataclasses import dataclass
from typing import Literal

from salmonrun.runtime.checks import check_types
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.pauses import PAUSE_S


@dataclass(frozen=True)
class TranscribeConfig:
    """How a recording of any length is cut into windows that the model can hear at once."""

    window_s: float = 20.0  # longest window; the model's own limit, if that is shorter
    batch_size: int = 4  # windows decoded together
    overlap_s: float = 2.0  # of windows that had to be cut while someone spoke without a pause
    part_pause_s: float = PAUSE_S  # a pause this long ends a window
    vad: Literal["auto", "silero", "energy"] = "auto"  # what tells speech from pauses; auto: silero where installed
    reject: bool = False  # leave out segments whose score is below the bundle's threshold

    def __post_init__(self) -> None:
        check_types(self)
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.window_s < 1:
            raise ConfigError(f"window_s is {self.window_s}; expected at least 1 second")
        longest = 0.4 * self.window_s  # so that what is left after a cut is shorter than a window
        if not 0 <= self.overlap_s <= longest:
            raise ConfigError(f"overlap_s is {self.overlap_s}; expected 0 to {longest:g} (40 % of window_s)")
        if not 0.1 <= self.part_pause_s <= longest:
            raise ConfigError(f"part_pause_s is {self.part_pause_s}; expected 0.1 to {longest:g} (40 % of window_s)")
