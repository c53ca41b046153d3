"""Rotary position tables, from an LLM's config."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import ConfigError

F32 = npt.NDArray[np.float32]


def rope_tables(config: dict[str, Any], head_dim: int, length: int) -> tuple[F32, F32]:
    """Cosines and sines [length, head_dim / 2] as transformers computes them: float32 frequencies and angles."""
    angles = np.arange(length, dtype=np.float32)[:, None] * inverse_frequencies(config, head_dim)[None, :]
    return np.cos(angles, dtype=np.float32), np.sin(angles, dtype=np.float32)


def inverse_frequencies(config: dict[str, Any], head_dim: int) -> F32:
    """[head_dim / 2]. Reads both spellings: rope_theta + rope_scaling, and transformers 5's rope_parameters.

    Raises:
        ConfigError: a rope variant that is not supported.
    """
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    frequencies = (1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)).astype(np.float32)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return frequencies
    if kind == "linear":
        return (frequencies / np.float32(rope["factor"])).astype(np.float32)
    if kind == "llama3":
        return _llama3(frequencies, rope)
    raise ConfigError(f"rope_type {kind!r} is not supported; supported are default, linear and llama3")


def _llama3(frequencies: F32, rope: dict[str, Any]) -> F32:
    """Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a linear blend between."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / frequencies
    blend = (original / wavelengths - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    scaled = np.where(wavelengths > original / low, frequencies / factor, blended)
    return np.where(wavelengths < original / high, frequencies, scaled).astype(np.float32)
