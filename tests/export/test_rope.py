"""Rotary tables against transformers' own, in both spellings of the config."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from export.rope import inverse_frequencies, rope_tables
from runtime.errors import ConfigError
from training.presets import LLAMA_3_2_3B, VICUNA_7B

LENGTH = 4096
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 10000.0},
    "theta": {"rope_theta": 500000.0},
    "no theta": {},
    "null": {"rope_theta": 10000.0, "rope_scaling": None},
    "named default": {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "default"}},
    "linear": {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "linear, old spelling": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "linear, new spelling": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 20000.0}},
    "llama3": {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "llama3, short": {
        "rope_theta": 10000.0,
        "rope_scaling": LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 256},
    },
    "llama3, new spelling": {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}},
}


def their_tables(config: dict[str, Any], head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [LENGTH, head_dim / 2]; transformers repeats each for the other half of a head."""
    options = {key: value for key, value in config.items() if key != "model_type"}
    if isinstance(options.get("rope_scaling"), dict):
        options["rope_scaling"] = dict(options["rope_scaling"])
    embedding = LlamaRotaryEmbedding(transformers.LlamaConfig(**options | {"head_dim": head_dim}))
    with torch.no_grad():
        tables = embedding(torch.zeros(1), torch.arange(LENGTH)[None])
    cos, sin = (table[0, :, : head_dim // 2].numpy() for table in tables)
    return cos, sin


def with_sizes(config: dict[str, Any], head_dim: int) -> dict[str, Any]:
    return config | {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "max_position_embeddings": LENGTH}


@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("name", VARIANTS)
def test_tables_are_those_of_transformers(name: str, head_dim: int) -> None:
    """Within 1e-6, and what a few units in the last place of a frequency become at an angle of thousands."""
    config = with_sizes(VARIANTS[name], head_dim)
    angles = np.arange(LENGTH)[:, None] * inverse_frequencies(config, head_dim)
    for ours, theirs in zip(rope_tables(config, head_dim, LENGTH), their_tables(config, head_dim), strict=True):
        assert ours.dtype == np.float32
        assert ours.shape == (LENGTH, head_dim // 2)
        assert np.all(np.abs(ours - theirs) <= 1e-6 + 5e-7 * angles)


@pytest.mark.parametrize("config", [VICUNA_7B, LLAMA_3_2_3B], ids=["vicuna", "llama 3.2"])
def test_tables_of_published_models_are_exactly_those_of_transformers(config: dict[str, Any]) -> None:
    for ours, theirs in zip(rope_tables(config, 128, LENGTH), their_tables(config, 128), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)


def test_llama3_keeps_short_wavelengths_and_stretches_long_ones() -> None:
    plain = inverse_frequencies(VARIANTS["theta"], 128)
    scaled = inverse_frequencies(VARIANTS["llama3"], 128)
    ratio = plain / scaled
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(32)
    assert np.all(np.diff(ratio) >= 0)
    assert np.any((ratio > 1.01) & (ratio < 31.9))


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope"])
def test_unsupported_types_are_refused(key: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"rope_type '{kind}' is not supported; supported are default, linear"):
        rope_tables({key: {"rope_type": kind, "factor": 2.0}}, 64, 8)
