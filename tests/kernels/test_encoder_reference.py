"""What the specification of the native encoders is made of, against float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from salmonrun.kernels import encoder_reference as reference
from salmonrun.kernels.formats import F32, pack_floats_t16
from salmonrun.kernels.reference import FloatLinear

F64 = npt.NDArray[np.float64]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> F32:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


# Arithmetic


def test_gelu_is_near() -> None:
    """Within 5e-7: 1.5e-7 of the approximation, times x as far as the tail reaches, and rounding."""
    x = np.linspace(-14, 14, 2_000_001).astype(np.float32)
    exact = torch.nn.functional.gelu(torch.from_numpy(x.astype(np.float64))).numpy()
    error = np.abs(reference.gelu(x) - exact)
    assert error.max() <= 5e-7
    assert error[np.abs(x) < 1e-3].max() <= 2e-10  # it is relative to x
    far = np.array([14, 100, 1e30, 3e38], np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(reference.gelu(far), far)
        np.testing.assert_array_equal(reference.gelu(-far), 0)


@pytest.mark.parametrize("size", [1, 17, 80, 1280])
def test_layer_norms_are_near(size: int) -> None:
    norm = reference.LayerNorm(normal(size, seed=1), normal(size, seed=2), 1e-5)
    for mean, scale in ((0, 1), (30, 1), (-3, 100)):
        x = normal(5, size, seed=3, scale=scale) + np.float32(mean)
        wide = x.astype(np.float64)
        variance = wide.var(axis=1, keepdims=True)
        expected = (wide - wide.mean(axis=1, keepdims=True)) / np.sqrt(variance + 1e-5) * norm.weight + norm.bias
        assert np.abs(norm(x) - expected).max() <= 1e-6 * (1 + abs(mean) / scale) * np.abs(expected).max()


@pytest.mark.parametrize("columns", [1, 64, 300, 4096])
def test_products_of_floats_are_near(columns: int) -> None:
    weight, bias, x = normal(20, columns), normal(20, seed=3), normal(3, columns, seed=1)
    found = FloatLinear(pack_floats_t16(weight), 20, columns, bias)(x)
    expected = x.astype(np.float64) @ weight.T + bias
    assert np.abs(found - expected).max() <= 1e-6 * (np.abs(x) @ np.abs(weight.T) + np.abs(bias)).max()


def test_softmax_is_near() -> None:
    scores = normal(4, 100, scale=5)
    np.testing.assert_allclose(reference.softmax(scores), softmax(scores), rtol=2e-6)


def softmax(scores: F32) -> F64:
    shares = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("spread", [0.1, 1, 10])
def test_attention_weights_are_within_half_a_step(spread: float) -> None:
    """254 steps from nothing to the heaviest: an error of at most 1 / 508 of that."""
    scores, scales = normal(7, 200, scale=spread), np.abs(normal(200, seed=1))
    values, steps = reference.weigh(scores, scales)
    assert values.min() >= -127
    np.testing.assert_array_equal(values.max(axis=1), 127)
    found = (values.astype(np.float64) + 127) * steps[:, None]
    expected = softmax(scores) * scales
    assert (np.abs(found - expected) <= 0.501 / 254 * expected.max(axis=1, keepdims=True)).all()


def test_gates_are_near() -> None:
    gate = reference.Gate(normal(2, 24, scale=0.2), normal(2, seed=1), normal(3, seed=2))
    q = normal(3, 50, 24, seed=3)
    a, b = np.moveaxis(1 / (1 + np.exp(-(q.astype(np.float64) @ gate.weight.T + gate.bias))), -1, 0)
    np.testing.assert_allclose(gate(q), a * (b * gate.scale[:, None] - 1) + 2, atol=1e-6)


HEADS, WIDTH, QUERIES, POSITIONS = 3, 24, 10, 90


@dataclass(frozen=True)
class Attention:
    """Keys and values of a recording, some of its queries, a bias, and what float64 says of them."""

    q: F32
    keys: F32
    values: F32
    bias: reference.Bias
    expected: F64


@pytest.fixture(params=[0, 1.5], ids=["without a bias", "with a bias"])
def attention(request: pytest.FixtureRequest) -> Attention:
    q, bias, gate = (
        normal(HEADS, QUERIES, WIDTH),
        normal(HEADS, QUERIES, POSITIONS, seed=1),
        normal(HEADS, QUERIES, seed=2),
    )
    keys, values = normal(POSITIONS, HEADS * WIDTH, seed=3), normal(POSITIONS, HEADS * WIDTH, seed=4)
    by_head = [part.reshape(POSITIONS, HEADS, WIDTH).transpose(1, 0, 2).astype(np.float64) for part in (keys, values)]
    scores = q @ by_head[0].transpose(0, 2, 1) + request.param * bias * gate[:, :, None]
    shares = np.exp(scores - scores.max(axis=2, keepdims=True))
    expected = shares @ by_head[1] / shares.sum(axis=2, keepdims=True)
    return Attention(q, keys, values, (np.float32(request.param) * bias, gate), expected)


def test_attention_to_floats_is_near(attention: Attention) -> None:
    kept = reference.KeptFloats().keep(attention.keys, attention.values)
    found = reference.KeptFloats().attend(attention.q, kept, attention.bias)
    assert np.abs(found - attention.expected).max() <= 5e-6


def test_attention_to_bytes_is_near(attention: Attention) -> None:
    """Within 3 % of what is attended to: keys, values, queries, and weights have errors of half a step each."""
    keeping = reference.KeptBytes(HEADS)
    found = keeping.attend(attention.q, keeping.keep(attention.keys, attention.values), attention.bias)
    assert rms(found - attention.expected) <= 0.03 * rms(attention.expected)


def test_what_is_kept_is_near() -> None:
    """Bytes within half a step of what they stand for, and scales where the format says."""
    keys, values = normal(5, HEADS * WIDTH), normal(5, HEADS * WIDTH, seed=1)
    kept = reference.KeptBytes(HEADS).keep(keys, values)
    dim = HEADS * WIDTH
    assert kept.shape == (5, 2 * dim + 8 * HEADS)
    scales = np.ascontiguousarray(kept[:, 2 * dim :]).view(np.float32).reshape(5, 2, HEADS, 1)
    numbers = kept[:, : 2 * dim].view(np.int8).reshape(5, 2, HEADS, WIDTH) * scales
    exact = np.stack([keys, values], axis=1).reshape(numbers.shape)
    assert (np.abs(numbers - exact) <= 0.5001 * scales).all()
    floats = reference.KeptFloats().keep(keys, values)
    np.testing.assert_array_equal(floats.view(np.float32), np.concatenate([keys, values], axis=1))


def rms(x: npt.NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
