"""What is measured, and how long."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from salmonrun.runtime.checks import check_types
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.latency.sampling import StopRule

ProtocolName = Literal["reference", "request", "stream", "load"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)
BaselineLlm = Literal["fp32", "bf16", "nf4"]  # what PyTorch's LLM is in: nf4 is bitsandbytes' 4 bits
LENGTHS_S = (2.0, 5.0, 10.0, 20.0, 30.0)


@dataclass(frozen=True)
class LatencyConfig:
    """Settings of all protocols."""

    protocols: tuple[ProtocolName, ...] = ("request",)
    lengths_s: tuple[float, ...] = LENGTHS_S  # of `request`'s recordings; the default as far as the bundle hears
    num_beams: tuple[int, ...] = (1, 4)  # of `request`'s searches
    tokens: int = 32  # of every answer; stop tokens are ignored, so that the work is the same each time
    utterance_s: float = 10.0  # of `stream`'s and `load`'s recordings
    block_s: float | None = None  # as in StreamConfig
    paced: bool = True  # streams come as if they were being recorded; else as fast as they are heard
    concurrency: tuple[int, ...] = (1, 2, 4, 8)  # of `load`
    load_of: Literal["streams", "requests"] = "streams"
    max_lag_s: float = 1.0  # a stream whose lag stays below it (p95) keeps real time
    task: str | None = None  # None: "asr", or the bundle's first
    prompt: str | None = None  # instead of a task
    rule: StopRule = field(default_factory=StopRule)

    def __post_init__(self) -> None:
        check_types(self)
        check_types(self.rule)
        for name in ("protocols", "lengths_s", "num_beams", "concurrency"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{name} is {values}; expected at least one value, each once")
        above_0 = {"utterance_s": self.utterance_s, "max_lag_s": self.max_lag_s, "precision": self.rule.precision}
        for name, value in [*above_0.items(), *(("lengths_s", length) for length in self.lengths_s)]:
            if value <= 0:
                raise ConfigError(f"{name} has {value:g}; it must be above 0")
        for name in ("num_beams", "concurrency"):
            if (least := min(getattr(self, name))) < 1:
                raise ConfigError(f"{name} has {least}; it must be at least 1")
        if self.tokens < 2:
            raise ConfigError(f"tokens is {self.tokens}; at least 2 are needed for a time between tokens")
        if self.rule.time_limit_s < 0:
            raise ConfigError(f"time_limit_s is {self.rule.time_limit_s:g}; it must be at least 0")
