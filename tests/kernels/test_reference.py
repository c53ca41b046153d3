"""The specification of the native kernels against independent arithmetic: exact fractions, float64, transformers."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.graphs.rope import rope_tables
from salmonrun.kernels import reference
from salmonrun.kernels.formats import (
    BLOCK_SIZES,
    F32,
    dequantize_nf4_t16,
    dequantize_t16,
    quantize_nf4_t16,
    quantize_t16,
)
from salmonrun.training.model.experts import EXPERTS
from salmonrun.training.model.llm import published_parameters
from tests.helpers.llms import BASE, LLMS, random_llm


def normal(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


# Arithmetic


def nearest(value: Fraction) -> np.float32:
    """A fraction in float32, rounded once: of the neighbours of a float64 near it, the nearest, the even one of two."""
    guess = np.float32(float(value))
    around = [np.nextafter(guess, np.float32(side)) for side in (-np.inf, np.inf)]
    candidates = [one for one in (guess, *around) if np.isfinite(one)]
    return min(candidates, key=lambda one: (abs(Fraction(float(one)) - value), int(one.view(np.uint32)) & 1))


def test_fma_rounds_once() -> None:
    rng = np.random.default_rng(0)
    a, b = normal(3000, seed=1), normal(3000, seed=2)
    product = a.astype(np.float64) * b
    c = np.where(rng.random(3000) < 0.5, -product * (1 + rng.normal(0, 1e-7, 3000)), rng.normal(0, 1, 3000))
    # Halfway between two float32, and a little beside: where rounding to float64 first would go wrong.
    ulp = np.spacing(np.float32(1))
    a[:3], b[:3], c[:3] = 1 + ulp, 1 + ulp, [ulp / 2 - 1, ulp / 2, 2.0**-60]
    a[3:6], b[3:6], c[3:6] = [1, -1, 1], ulp / 2, [1, 1 + ulp, 1 + ulp]
    a[6:8], b[6:8], c[6:8] = 2.0**-40, 2.0**-40, [1 + ulp, 1]
    c = c.astype(np.float32)
    found = reference.fma(a, b, c)
    for i in range(len(a)):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        assert found[i] == nearest(exact), (a[i], b[i], c[i])


def test_exp_is_near() -> None:
    x = np.random.default_rng(0).uniform(-87, 88, 200_000).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(reference.exp(x) / exact - 1).max() < 1e-7
    edges = np.array([-87.5, -np.inf, 0, 90], np.float32)
    np.testing.assert_array_equal(reference.exp(edges)[:3], [0, 0, 1])
    assert np.isfinite(reference.exp(edges)[3])


def test_norms_and_swiglu_are_near() -> None:
    x, weight = normal(3, 80), normal(80, seed=1)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt(np.square(wide).mean(axis=1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(reference.rms_norm(x, weight, 1e-5), expected, rtol=2e-6)
    gate = 20 * x.astype(np.float64)
    np.testing.assert_allclose(reference.silu_mul(20 * x, x), gate / (1 + np.exp(-gate)) * x, rtol=2e-6, atol=1e-30)


def test_attention_is_near() -> None:
    q, keys, values = normal(2, 5, 16), normal(2, 40, 16, seed=1), normal(2, 40, 16, seed=2)
    places = np.arange(40)
    visible = (places <= np.arange(35, 40)[:, None]) & (places > np.arange(15, 20)[:, None])
    scores = np.where(visible, np.einsum("hqd,hpd->hqp", q.astype(np.float64), keys), -np.inf)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    expected = np.einsum("hqp,hpd->hqd", weights / weights.sum(axis=2, keepdims=True), values)
    np.testing.assert_allclose(reference.attend(q, keys, values, visible), expected, atol=2e-6)


# Products


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("activations", [128, 256])
def test_products_are_those_of_what_the_numbers_stand_for(bits: int, block: int, activations: int) -> None:
    """On activations that are on their grid, with nothing but float32 rounding between the two."""
    rng = np.random.default_rng(0)
    packed, scales = quantize_t16(normal(20, 300), bits, block)
    bias = normal(20, seed=3)
    x = rng.integers(-127, 128, (3, 300)).astype(np.float32)
    x[:, ::32] = 127
    found = reference.Linear(packed, scales, 20, 300, activations, bias)((x / 64).astype(np.float32))
    weight = dequantize_t16(packed, scales)[:20, :300].astype(np.float64)
    np.testing.assert_allclose(found, x / 64 @ weight.T + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [64, 300, 4096])
def test_products_of_nf4_are_near_those_in_float64(columns: int) -> None:
    weight, bias, x = normal(20, columns), normal(20, seed=3), normal(3, columns, seed=1)
    packed, scales = quantize_nf4_t16(weight, 64)
    found = reference.Nf4Linear(packed, scales, 20, columns, bias)(x)
    values = dequantize_nf4_t16(packed, scales)[:20, :columns].astype(np.float64)
    expected = x.astype(np.float64) @ values.T + bias
    assert np.abs(found - expected).max() <= 1e-5 * np.sqrt(np.mean(np.square(expected)))


@pytest.mark.parametrize("block", reference.ACTIVATION_BLOCKS)
def test_activations_are_within_half_a_step(block: int) -> None:
    x = normal(4, 300) * 10.0 ** np.arange(4, dtype=np.float32)[:, None]
    x[2, :block] = 0
    values, scales = reference.quantize_activations(x, block)
    assert values.shape == (4, scales.shape[1] * block)
    step = np.repeat(scales, block, axis=1)[:, :300]
    assert np.all(np.abs(values[:, :300] * step - x) <= step * 0.5001)
    assert np.abs(values).max() == 127


# The graph


class Float:
    """A matrix that is not quantized."""

    def __init__(self, tensors: dict[str, Any], name: str) -> None:
        self.weight = tensors[f"{name}.weight"].detach().numpy()
        self.bias = tensors[f"{name}.bias"].detach().numpy() if f"{name}.bias" in tensors else np.float32(0)

    def __call__(self, x: F32, /) -> F32:
        return np.asarray(x @ self.weight.T + self.bias, np.float32)


OWN = {"qwen3, odd sizes": {"model_type": "qwen3", "head_dim": 48, "num_key_value_heads": 1, "hidden_size": 80}}


def float_mlp(tensors: dict[str, Any], layer: str, shape: LlmShape) -> reference.Mlp | reference.Mixture:
    """What a layer has, by the names of its family."""
    names = EXPERTS.get(shape.config.model_type)

    def mlp(prefix: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> reference.Mlp:
        return reference.Mlp(*(Float(tensors, prefix + name) for name in (gate, up, down)))

    if names is None or f"{layer}{names.block}.gate.weight" not in tensors:
        return mlp(f"{layer}mlp.")
    assert shape.experts is not None
    block = f"{layer}{names.block}."
    router, gate = (tensors.get(f"{block}{name}.weight") for name in ("gate", "shared_expert_gate"))
    assert router is not None
    experts = [mlp(f"{block}experts.{i}.", names.gate, names.up, names.down) for i in range(len(router))]
    choice = (shape.experts.per_token, shape.experts.normalised)
    shared = (mlp(f"{block}shared_expert."), gate.detach().numpy()) if gate is not None else ()
    return reference.Mixture(router.detach().numpy(), experts, *choice, *shared)


def float_model(config: dict[str, Any], llm: torch.nn.Module) -> reference.Model:
    """transformers' weights as they are, behind the specification's graph."""
    shape, tensors = LlmShape.from_config(config), published_parameters(llm)

    def norm(name: str) -> F32 | None:
        return tensors[f"{name}.weight"].detach().numpy() if f"{name}.weight" in tensors else None

    def layer(i: int) -> reference.Layer:
        prefix = f"model.layers.{i}."
        attention = {part: Float(tensors, f"{prefix}self_attn.{part}_proj") for part in "qkvo"}
        names = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
        before, after, q_norm, k_norm = (norm(prefix + name) for name in names)
        assert before is not None
        assert after is not None
        return reference.Layer(
            input_norm=before,
            post_norm=after,
            q_norm=q_norm,
            k_norm=k_norm,
            window=shape.windows[i],
            mlp=float_mlp(tensors, prefix, shape),
            **attention,
        )

    last = norm("model.norm")
    assert last is not None
    cos, sin = rope_tables(shape.config, shape.head_dim, 64)
    head = Float(tensors, "model.embed_tokens" if shape.tied else "lm_head")
    layers = [layer(i) for i in range(shape.layers)]
    sizes = (shape.heads, shape.kv_heads, shape.head_dim, shape.eps)
    return reference.Model(layers, last, head, cos, sin, *sizes, cache_dtype=np.float32)


@pytest.mark.parametrize("case", (LLMS | OWN).values(), ids=list(LLMS | OWN))
def test_the_graph_is_that_of_transformers(case: dict[str, Any]) -> None:
    config = BASE | case
    llm = random_llm(config)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 70, (1, 40)))
    with torch.no_grad():
        expected = llm(ids, use_cache=False).logits[0].numpy()
        embeds = llm.get_input_embeddings()(ids)[0].numpy()
    found = float_model(config, llm).logits(embeds)
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, float(np.sqrt(np.mean(np.square(expected)))))
