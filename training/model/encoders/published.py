"""What the audio encoders have in common: a published one as it lies on disk, and patches of a filter bank."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmonrun.runtime.config import FbankConfig
from salmonrun.runtime.errors import ConfigError
from salmonrun.training.tensors import LazyTensors

Leftovers = dict[str, str]  # published name -> why it is not needed


@dataclass(frozen=True)
class Published:
    """An opened file or folder, before anything is known of its kind."""

    path: Path
    options: dict[str, Any]  # of a .pt all but its tensors, of a folder its config.json
    tensors: LazyTensors  # under their published names
    others: tuple[str, ...] = ()  # names in the state dict that are no tensors


def check_patches(fbank: FbankConfig, size: int) -> None:
    """Whether the front end counts patches of `size` x `size` as the encoder does.

    Raises:
        ConfigError: it does not.
    """
    if (fbank.patch_frames, fbank.patch_tokens) != (size, fbank.bins // size):
        raise ConfigError(
            f"fbank has {fbank.patch_tokens} tokens for {fbank.patch_frames} frames of {fbank.bins} bins; patches of "
            f"{size} x {size} make {fbank.bins // size} for {size}"
        )
