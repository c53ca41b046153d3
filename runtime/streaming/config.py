"""Settings of streams."""

from dataclasses import dataclass, field
from typing import Literal

from salmonrun.runtime.checks import check_types
from salmonrun.runtime.config import Block, BlockConfig
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.pauses import BEFORE_S, PAUSE_S

FRAMES_PER_S = 50  # Whisper's


@dataclass(frozen=True)
class EndpointConfig:
    """When speech begins and when an utterance is over: Kaldi's three rules (online-endpoint.h)."""

    silence_s: float = PAUSE_S  # rule 1: so much silence, though nothing was understood yet
    pause_s: float = PAUSE_S  # rule 2: so much silence after something was
    longest_s: float = (
        20.0  # rule 3: the utterance is so long; it ends at the next short pause, or where the window does
    )
    margin_s: float = BEFORE_S  # audio that is kept in front of speech; behind it, at most half a pause
    vad: Literal["auto", "silero", "energy"] = "auto"

    def __post_init__(self) -> None:
        check_types(self, "endpoint.")
        for name in ("silence_s", "pause_s", "longest_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"endpoint.{name} is {getattr(self, name)}; it must be above 0 seconds")
        if self.margin_s < 0:
            raise ConfigError(f"endpoint.margin_s is {self.margin_s}; it must be at least 0 seconds")


@dataclass(frozen=True)
class StreamConfig:
    """How a stream is heard and answered."""

    # block: every block of audio is encoded once; for bundles that can. agreement: the utterance so far is encoded anew
    # at every update; for any bundle. auto: block where the bundle has it.
    policy: Literal["auto", "agreement", "block"] = "auto"
    update_s: float = 0.5  # audio between two updates; with block, rounded up to whole blocks
    block_s: float | None = None  # one of the bundle's; None: its longest, which hears best
    lookback_s: float | None = None  # one of the bundle's; None: its longest
    hypotheses: int = 3  # that must agree on a text before it is stable
    hold_back: int = 3  # tokens at the end of that which are not stable yet
    # How to find utterances; None: no voice detection, all that is heard is one utterance (up to the model's window).
    endpoint: EndpointConfig | None = field(default_factory=EndpointConfig)
    # Where a stream falls so far behind real time, updates are left out (and counted); None: never, however slow.
    max_lag_s: float | None = None
    # Whether an utterance whose score is below the bundle's threshold has no text but what was stable, and an update
    # below it makes nothing stable.
    reject: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.update_s <= 0:
            raise ConfigError(f"update_s is {self.update_s}; it must be above 0 seconds")
        for name, value, least in (("hypotheses", self.hypotheses, 1), ("hold_back", self.hold_back, 0)):
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")
        if self.policy == "agreement" and (self.block_s is not None or self.lookback_s is not None):
            raise ConfigError("block_s and lookback_s are of policy 'block'; leave them out with 'agreement'")
        if self.max_lag_s is not None and self.max_lag_s < 0:
            raise ConfigError(f"max_lag_s is {self.max_lag_s}; it must be at least 0 seconds, or None")

    def block(self, trained: BlockConfig | None) -> Block | None:
        """The block to hear with; None with policy "agreement".

        Raises:
            ConfigError: the bundle's encoders do not hear in such blocks.
        """
        asked = self.policy == "block" or self.block_s is not None or self.lookback_s is not None
        if self.policy == "agreement" or (trained is None and not asked):
            return None
        if trained is None:
            raise ConfigError(
                "policy 'block' is asked for, but this bundle's encoders hear whole recordings: fine-tune the "
                "checkpoint with `streaming:` in its recipe, or use policy 'agreement'"
            )
        return Block(
            _frames("block_s", self.block_s, trained.sizes, trained.sizes[-1]),
            _frames("lookback_s", self.lookback_s, trained.lookbacks, trained.lookbacks[-1]),
        )


def _frames(name: str, seconds: float | None, trained: tuple[int, ...], default: int) -> int:
    if seconds is None:
        return default
    for frames in trained:
        if abs(frames / FRAMES_PER_S - seconds) <= 1e-6:
            return frames
    known = ", ".join(f"{frames / FRAMES_PER_S:g}" for frames in trained)
    raise ConfigError(f"{name} is {seconds:g}; this bundle was trained for {known}")
