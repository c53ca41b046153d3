"""Rotary position tables, from the frequencies that transformers computes for an LLM's config."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from salmonrun.runtime.errors import ConfigError

F32 = npt.NDArray[np.float32]
# Variants whose frequencies change once a sequence is longer than so many positions: a table cannot.
LONGEST: dict[str, Callable[[PreTrainedConfig], int]] = {
    "dynamic": lambda config: int(config.max_position_embeddings),
    "longrope": lambda config: int(config.rope_parameters["original_max_position_embeddings"]),
}
SUPPORTED = ("default", "linear", "llama3", "yarn", *LONGEST)


def rope_tables(config: PreTrainedConfig, head_dim: int, length: int) -> tuple[F32, F32]:
    """Cosines and sines [length, head_dim / 2], times the attention factor of the variants that have one.

    Raises:
        ConfigError: a rope variant that is not supported, or not at this length.
    """
    frequencies, factor = _frequencies(config, head_dim, length)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies[None, :]
    return (angles.cos() * factor).numpy(), (angles.sin() * factor).numpy()


def _frequencies(config: PreTrainedConfig, head_dim: int, length: int) -> tuple[Tensor, float]:
    """[head_dim / 2], and the attention factor."""
    rope = config.rope_parameters
    kind = rope["rope_type"]
    if kind not in SUPPORTED:
        raise ConfigError(f"rope_type {kind!r} is not supported; supported: {', '.join(SUPPORTED)}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(f"partial_rotary_factor is {rope['partial_rotary_factor']}; only whole heads are supported")
    longest = LONGEST[kind](config) if kind in LONGEST else length
    if length > longest:
        raise ConfigError(
            f"rope_type {kind!r} changes all positions of sequences longer than {longest}, which a bundle cannot: "
            f"export with --max-length {longest}"
        )
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        return 1.0 / rope["rope_theta"] ** exponents, 1.0
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config)
    return frequencies, float(factor)
