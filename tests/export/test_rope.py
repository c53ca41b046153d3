"""Rotary tables against those of transformers, in both spellings of the config, and against the published formulae."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from salmonrun.export.graphs.rope import rope_tables
from salmonrun.runtime.errors import ConfigError
from salmonrun.training.model.llm import llm_config
from salmonrun.training.starting.presets import LLAMA_3_2_3B, VICUNA_7B

LENGTH = 4096
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
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
    "yarn": {"rope_theta": 1000000.0, "rope_scaling": YARN},
    "yarn, its factor given": {
        "rope_theta": 10000.0,
        "rope_scaling": YARN | {"attention_factor": 0.7, "beta_fast": 16},
    },
    "dynamic": {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
}


def their_tables(config: transformers.PreTrainedConfig, length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [length, head_dim / 2]; transformers repeats each for the other half of a head."""
    with torch.no_grad():
        tables = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
    cos, sin = (table[0, :, : table.shape[2] // 2].numpy() for table in tables)
    return cos, sin


def read(config: dict[str, Any], head_dim: int) -> transformers.PreTrainedConfig:
    sizes = {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "max_position_embeddings": LENGTH}
    return llm_config(sizes | {"model_type": "llama", "head_dim": head_dim} | config)


def frequencies(config: dict[str, Any], head_dim: int) -> np.ndarray:
    """Angles of position 1, from tables of an attention factor of 1."""
    cos, sin = rope_tables(read(config, head_dim), head_dim, 2)
    return np.arctan2(sin[1], cos[1])


@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("name", VARIANTS)
def test_tables_are_those_of_transformers(name: str, head_dim: int) -> None:
    """Within 1e-6, and what a few units in the last place of a frequency become at an angle of thousands."""
    config = read(VARIANTS[name], head_dim)
    angles = np.arange(LENGTH)[:, None] * np.ones(head_dim // 2)
    for ours, theirs in zip(rope_tables(config, head_dim, LENGTH), their_tables(config), strict=True):
        assert ours.dtype == np.float32
        assert ours.shape == (LENGTH, head_dim // 2)
        assert np.all(np.abs(ours - theirs) <= 1e-6 + 5e-7 * angles)


@pytest.mark.parametrize("config", [VICUNA_7B, LLAMA_3_2_3B], ids=["vicuna", "llama 3.2"])
def test_tables_of_published_models_are_exactly_those_of_transformers(config: dict[str, Any]) -> None:
    read = llm_config(config)
    for ours, theirs in zip(rope_tables(read, 128, LENGTH), their_tables(read), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)


def test_llama3_keeps_short_wavelengths_and_stretches_long_ones() -> None:
    plain, scaled = (frequencies(VARIANTS[name], 128) for name in ("theta", "llama3"))
    ratio = plain / scaled
    assert ratio[0] == pytest.approx(1)
    assert ratio[-1] == pytest.approx(32)
    assert np.all(np.diff(ratio) >= -1e-3)
    assert np.any((ratio > 1.01) & (ratio < 31.9))


def test_yarn_stretches_long_wavelengths_and_sharpens_attention() -> None:
    """Peng et al. 2023: more than beta_fast turns in the original context kept, less than one divided by the factor."""
    plain, scaled = (frequencies(config, 128) for config in ({"rope_theta": 10000.0}, yarn(attention_factor=1.0)))
    ratio, turns = plain / scaled, 1024 * plain / (2 * np.pi)
    assert ratio[turns > 40] == pytest.approx(1, abs=1e-4)
    assert ratio[turns < 0.8] == pytest.approx(4, rel=1e-3)
    cos, _ = rope_tables(read(yarn(), 128), 128, 2)
    assert cos[0] == pytest.approx(0.1 * np.log(4) + 1)  # equation 22, on queries and keys each


def yarn(**more: float) -> dict[str, Any]:
    return {"rope_theta": 10000.0, "rope_scaling": YARN | more}


LONGROPE = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 512,
    "short_factor": [1.0 + i / 32 for i in range(32)],
    "long_factor": [2.0 + i / 8 for i in range(32)],
}


def test_longrope_has_the_short_factors() -> None:
    config = read({"rope_theta": 10000.0, "rope_scaling": LONGROPE}, 64)
    for ours, theirs in zip(rope_tables(config, 64, 512), their_tables(config, 512), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
    assert rope_tables(config, 64, 1)[0] == pytest.approx(np.sqrt(1 + np.log(4) / np.log(512)))


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [(LONGROPE, 512), ({"rope_type": "dynamic", "factor": 2.0}, LENGTH)],
    ids=["long", "dynamic"],
)
def test_no_table_where_long_sequences_change_all_positions(scaling: dict[str, Any], longest: int) -> None:
    config = read({"rope_theta": 10000.0, "rope_scaling": scaling}, 64)
    with pytest.raises(ConfigError, match=f"longer than {longest}, which .* export with --max-length {longest}"):
        rope_tables(config, 64, longest + 1)


def test_other_types_are_refused() -> None:
    config = read({}, 64)
    config.rope_parameters = {"rope_type": "proportional", "rope_theta": 10000.0}
    with pytest.raises(ConfigError, match="rope_type 'proportional' is not supported; supported: default, linear"):
        rope_tables(config, 64, 8)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    with pytest.raises(ConfigError, match=r"partial_rotary_factor is 0\.5"):
        rope_tables(config, 64, 8)
