"""Rotary position tables, from an LLM's config, in the arithmetic of transformers: PyTorch's float32."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.errors import ConfigError

F32 = npt.NDArray[np.float32]


def rope_tables(config: dict[str, Any], head_dim: int, length: int) -> tuple[F32, F32]:
    """Cosines and sines [length, head_dim / 2].

    Raises:
        ConfigError: a rope variant that is not supported.
    """
    frequencies = torch.from_numpy(inverse_frequencies(config, head_dim))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies[None, :]
    return angles.cos().numpy(), angles.sin().numpy()


def inverse_frequencies(config: dict[str, Any], head_dim: int) -> F32:
    """[head_dim / 2]. Reads both spellings: rope_theta + rope_scaling, and transformers 5's rope_parameters.

    Raises:
        ConfigError: a rope variant that is not supported.
    """
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return frequencies.numpy()
    if kind == "linear":
        return (frequencies / float(rope["factor"])).numpy()
    if kind == "llama3":
        return _llama3(frequencies, rope).numpy()
    raise ConfigError(f"rope_type {kind!r} is not supported; supported are default, linear and llama3")


def _llama3(frequencies: Tensor, rope: dict[str, Any]) -> Tensor:
    """Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a smooth blend between."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / frequencies
    smooth = (original / wavelengths - low) / (high - low)
    scaled = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(between, blended, scaled)
