"""Sizes of a model's parts. Read by command lines, too: importing them imports no PyTorch."""

import math
from dataclasses import dataclass, field

from salmonrun.runtime.config import WindowConfig
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.schema import OPTIONAL

MAX_LAYERS = 1000
MAX_SIZE = 2**20  # of a width, a number of heads, a table's rows


def check_sizes(config: object, *names: str) -> None:
    """Whether sizes are ones that a model can have, before it is laid out.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        value, most = getattr(config, name), MAX_LAYERS if name == "layers" else MAX_SIZE
        if not 1 <= value <= most:
            raise ConfigError(f"{name} is {value}; expected 1 to {most}")


@dataclass(frozen=True)
class WhisperConfig:
    """Dimensions of a Whisper encoder."""

    d_model: int
    layers: int
    heads: int
    ffn: int
    n_mels: int = 80
    max_frames: int = 1500  # rows of the position table: 30 s at 50 frames a second
    # Of linear layers that are two thin ones: "layers.0.fc1" -> values between the two. None: there are none.
    ranks: dict[str, int] | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        check_sizes(self, "d_model", "layers", "heads", "ffn", "max_frames")
        if self.d_model % self.heads:
            raise ConfigError(f"d_model {self.d_model} is not a multiple of heads {self.heads}")
        for name, rank in (self.ranks or {}).items():
            if rank < 1:
                raise ConfigError(f"ranks has {rank} for {name}; it must be at least 1")


@dataclass(frozen=True)
class QFormerConfig:
    """The window-level Q-Former. Defaults are bert-base's, as published."""

    dim: int = 768
    layers: int = 2
    heads: int = 12
    ffn: int = 3072
    window: WindowConfig = field(default_factory=WindowConfig)

    def __post_init__(self) -> None:
        check_sizes(self, "dim", "layers", "heads", "ffn")
        if self.dim % self.heads:
            raise ConfigError(f"dim {self.dim} is not a multiple of heads {self.heads}")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters, on the LLM or on Whisper's encoder."""

    r: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        if not 1 <= self.r <= MAX_SIZE:
            raise ConfigError(f"the adapters' rank r is {self.r}; expected at least 1, or no adapters (--no-lora)")
        for name in ("alpha", "dropout"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a finite number")

    @property
    def scale(self) -> float:
        """alpha / r, by which B @ A is multiplied."""
        return self.alpha / self.r
