"""Sizes of a model's parts. Read by command lines, too: importing them imports no PyTorch."""

from dataclasses import dataclass, field

from salmonrun.runtime.config import WindowConfig
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.schema import OPTIONAL


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
        if self.dim % self.heads:
            raise ConfigError(f"dim {self.dim} is not a multiple of heads {self.heads}")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters, on the LLM or on Whisper's encoder."""

    r: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    @property
    def scale(self) -> float:
        """alpha / r, by which B @ A is multiplied."""
        return self.alpha / self.r
