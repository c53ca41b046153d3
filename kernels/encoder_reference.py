"""What the native kernels compute of encoders of audio, to the bit: their specification, in numpy.

As in `reference`, every result is defined by one order of float32 operations. What becomes of a position depends
only on what it sees, which is all of its recording that is there and all that was kept of it: not on other
recordings, nor on how many positions go through a product together.

Products are of integers, like the LLM's, or of floats: then keys and values are kept as floats, too, and nothing but
rounding lies between what this computes and what the weights mean.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from salmonrun.kernels.formats import F32, Bytes, round_bfloat16
from salmonrun.kernels.reference import (
    SMALLEST,
    Bfloat16Linear,
    Product,
    dot,
    exp,
    fma,
    quantize_activations,
    sum_pairs,
    sum_rows,
    sum_squares,
)

_BYTE_STEPS = 254  # of attention weights: bytes from -127 to 127
_ONE, _ZERO = np.float32(1), np.float32(0)

# erfc(z) = (t a1 + t^2 a2 + ... + t^5 a5) e^(-z^2), t = 1 / (1 + p z), up to 1.5e-7: Abramowitz and Stegun 7.1.26.
_ERFC_P = np.float32(0.3275911)
_ERFC_TERMS = tuple(np.float32(term) for term in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592))
_SQRT_HALF = np.float32(0.70710678)


def gelu(x: F32) -> F32:
    """x times the share of a normal distribution below it: max(x, 0) - |x| erfc(|x| / sqrt 2) / 2."""
    size = np.abs(x)
    t = _ONE / fma(size, _ERFC_P * _SQRT_HALF, _ONE)
    half = np.float32(0.5)
    y = np.full_like(t, half * _ERFC_TERMS[0])
    for term in _ERFC_TERMS[1:]:
        y = fma(y, t, half * term)
    tail = y * t * exp(x * x * -half)
    return fma(-size, tail, np.where(x > 0, x, _ZERO))


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """Rows less their mean, over their standard deviation."""

    weight: F32  # [dim]
    bias: F32  # [dim]
    eps: float

    def __call__(self, x: F32) -> F32:
        """[..., dim] to [..., dim]."""
        count = np.float32(x.shape[-1])
        centred = x - (sum_rows(x) / count)[..., None]
        variance = sum_squares(centred) / count
        inverse: F32 = _ONE / np.sqrt(variance + np.float32(self.eps))
        return fma(centred * inverse[..., None], self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class LowRank:
    """Two thin matrices in the place of one."""

    up: Product
    down: Product

    def __call__(self, x: F32, /) -> F32:
        """[n, columns] to [n, rows]."""
        return self.up(self.down(x))


def softmax(scores: F32) -> F32:
    """Rows [..., n] to shares of one."""
    shares = exp(scores - scores.max(axis=-1, keepdims=True))
    return shares / sum_rows(shares)[..., None]


def weigh(scores: F32, value_scales: F32) -> tuple[npt.NDArray[np.int8], F32]:
    """Rows of scores to shares of one, times the scales of the values that they will weigh, as bytes.

    A byte b stands for (b + 127) * scale: shares are not negative, so that all 255 steps are of use.

    Args:
        scores: [..., n].
        value_scales: the same, or what can be broadcast to it.

    Returns:
        bytes [..., n] and scales [...].
    """
    shares = exp(scores - scores.max(axis=-1, keepdims=True))
    weights = shares * value_scales
    heaviest = np.maximum(weights.max(axis=-1, keepdims=True), _ZERO)
    inverse = np.divide(np.float32(_BYTE_STEPS), heaviest, out=np.zeros_like(heaviest), where=heaviest > SMALLEST)
    lowest = -_BYTE_STEPS // 2
    values = np.clip(np.rint(weights * inverse) + np.float32(lowest), lowest, -lowest).astype(np.int8)
    return values, heaviest[..., 0] / np.float32(_BYTE_STEPS) / sum_rows(shares)


# What is added to scores [heads, queries, positions], and how much of it each query takes [heads, queries].
Bias = tuple[F32, F32]


class Kept(Protocol):
    """How keys and values are kept, and attended to."""

    def keep(self, keys: F32, values: F32) -> Bytes:
        """Of keys and values [n, dim] what is kept: [n, position_bytes]."""
        ...

    def attend(self, q: F32, kept: Bytes, bias: Bias | None) -> F32:
        """Queries [heads, n, head_dim] over all that is kept, [positions, position_bytes]: [heads, n, head_dim]."""
        ...


@dataclass(frozen=True)
class KeptBytes:
    """Bytes, with a scale for each position of a head.

    Of a position: keys [dim], values [dim], then in float32 the scales of its keys [heads] and of its values [heads].
    """

    heads: int

    def keep(self, keys: F32, values: F32) -> Bytes:
        """[n, dim] to [n, 2 dim + 8 heads]."""
        numbers, scales = [], []
        for part in (keys, values):
            quantized, scale = quantize_activations(
                part.reshape(len(part) * self.heads, -1), part.shape[1] // self.heads
            )
            numbers.append(quantized.reshape(part.shape).view(np.uint8))
            scales.append(scale.reshape(len(part), self.heads).view(np.uint8))
        return np.concatenate([*numbers, *scales], axis=1)

    def attend(self, q: F32, kept: Bytes, bias: Bias | None) -> F32:
        """Of products of integers; scales of keys are rounded to float16, as these products have them."""
        heads, _, head_dim = q.shape
        dim = heads * head_dim
        numbers = kept[:, : 2 * dim].view(np.int8).reshape(len(kept), 2, heads, head_dim)
        scales = np.ascontiguousarray(kept[:, 2 * dim :]).view(np.float32).reshape(len(kept), 2, heads)
        keys, values = numbers.transpose(1, 2, 0, 3)  # [heads, positions, head_dim]
        key_scales, value_scales = scales.transpose(1, 2, 0)[:, :, None]  # [heads, 1, positions]

        queries, q_scales = quantize_activations(q.reshape(-1, head_dim), head_dim)
        part = fma(_dots(queries.reshape(q.shape), keys.transpose(0, 2, 1)), _half(key_scales), _ZERO)
        scores = _biased(fma(part, q_scales.reshape(heads, -1, 1), _ZERO), bias)
        weights, steps = weigh(scores, value_scales)
        out = fma(_dots(weights, values), steps[..., None], _ZERO)
        sums = (127 * values.sum(axis=1, dtype=np.int64)).astype(np.float32)  # a byte b stands for b + 127
        return fma(sums[:, None], steps[..., None], out)


@dataclass(frozen=True)
class KeptFloats:
    """As they are: of a position keys [dim], then values [dim], in float32; products may be of bfloat16."""

    bfloat16: bool = False

    def keep(self, keys: F32, values: F32) -> Bytes:
        """[n, dim] to [n, 8 dim]."""
        return np.concatenate([keys, values], axis=1).view(np.uint8)

    def attend(self, q: F32, kept: Bytes, bias: Bias | None) -> F32:
        """Scores are added up over the values of a head, what is attended to over positions: one by one."""
        heads, _, head_dim = q.shape
        numbers = np.ascontiguousarray(kept).view(np.float32).reshape(len(kept), 2, heads, head_dim)
        keys, values = numbers.transpose(1, 2, 0, 3)  # [heads, positions, head_dim]
        if self.bfloat16:
            scores = sum_pairs(round_bfloat16(q), round_bfloat16(keys))
            shares = softmax(_biased(scores, bias))
            return sum_pairs(round_bfloat16(shares), round_bfloat16(values).transpose(0, 2, 1))
        scores = np.zeros((*q.shape[:2], len(kept)), np.float32)
        for d in range(head_dim):
            scores = fma(q[:, :, d, None], keys[:, None, :, d], scores)
        shares = softmax(_biased(scores, bias))
        out = np.zeros_like(q)
        for position in range(len(kept)):
            out = fma(shares[:, :, position, None], values[:, None, position], out)
        return out


def _dots(a: npt.NDArray[np.int8], b: npt.NDArray[np.int8]) -> F32:
    """Products of matrices of integers [..., n, m] and [..., m, k]: exact, then rounded."""
    product = a.astype(np.float64) @ b.astype(np.float64)  # sums are far below 2 ** 53
    return product.astype(np.float32)


def _half(x: F32) -> F32:
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def _biased(scores: F32, bias: Bias | None) -> F32:
    return scores if bias is None else fma(bias[0], bias[1][:, :, None], scores)


@dataclass(frozen=True, eq=False)
class Gate:
    """How much of BEATs' relative position bias a query takes (Chen et al. 2022, after WavLM)."""

    weight: F32  # [2, head_dim]
    bias: F32  # [2]
    scale: F32  # [heads]

    def __call__(self, q: F32) -> F32:
        """Of queries [heads, n, head_dim], as they come from their product: [heads, n]."""
        opened: F32 = _ONE / (exp(-(dot(q, self.weight) + self.bias)) + _ONE)
        a, b = opened[..., 0], opened[..., 1]
        return np.asarray(a * (b * self.scale[:, None] - _ONE) + np.float32(2))


@dataclass(frozen=True, eq=False)
class EncoderLayer:
    """Attention, and an MLP with GELU."""

    q: Product
    k: Product
    v: Product
    out: Product
    fc1: Product
    fc2: Product
    attention_norm: LayerNorm
    mlp_norm: LayerNorm
    gate: Gate | None = None  # where there is a bias by distance


@dataclass(frozen=True, eq=False)
class Encoder:
    """The transformer of an encoder of audio: Whisper's, BEATs', EAT's."""

    layers: list[EncoderLayer]
    heads: int
    norm_first: bool  # x + f(norm(x)), as Whisper has it; else norm(x + f(x))
    norm: LayerNorm | None = None  # behind the last layer
    bias_by_distance: F32 | None = None  # [heads, 2 longest - 1], of key - query
    cache_dtype: type[np.int8 | np.float32] = np.int8  # float32 where products are of floats

    def __call__(self, x: F32, past: Bytes | None = None) -> tuple[F32, Bytes]:
        """New positions of one recording, whole or in parts: what was kept of one goes into the next.

        Args:
            x: [n, dim].
            past: [layers, positions before, position_bytes], what was kept of those; None: there are none.

        Returns:
            states [n, dim], and what is kept now: [layers, positions before + n, position_bytes].
        """
        present = []
        for index, layer in enumerate(self.layers):
            attended, kept = self._attention(layer, self._before(layer.attention_norm, x), past, index)
            present.append(kept)
            x = self._after(layer.attention_norm, x + layer.out(attended))
            hidden = gelu(layer.fc1(self._before(layer.mlp_norm, x)))
            x = self._after(layer.mlp_norm, x + layer.fc2(hidden))
        return x if self.norm is None else self.norm(x), np.stack(present)

    def _before(self, norm: LayerNorm, x: F32) -> F32:
        return norm(x) if self.norm_first else x

    def _after(self, norm: LayerNorm, x: F32) -> F32:
        return x if self.norm_first else norm(x)

    def _attention(self, layer: EncoderLayer, x: F32, past: Bytes | None, index: int) -> tuple[F32, Bytes]:
        """[n, dim] to [n, dim], and the keys and values [positions, position_bytes] that it has seen."""
        floats = KeptFloats(isinstance(layer.k, Bfloat16Linear))
        keeping: Kept = KeptBytes(self.heads) if self.cache_dtype is np.int8 else floats
        kept = keeping.keep(layer.k(x), layer.v(x))
        if past is not None:
            kept = np.concatenate([past[index], kept])
        q = layer.q(x).reshape(len(x), self.heads, -1).transpose(1, 0, 2)  # [heads, n, head_dim]
        factor = _ONE / np.sqrt(np.float32(q.shape[2]))
        attended = keeping.attend(q * factor, kept, self._bias(layer, q, len(kept)))
        return attended.transpose(1, 0, 2).reshape(x.shape), kept

    def _bias(self, layer: EncoderLayer, q: F32, positions: int) -> Bias | None:
        """The queries are the last of the positions."""
        if layer.gate is None or self.bias_by_distance is None:
            return None
        keys = np.arange(positions)
        distances = keys - keys[positions - q.shape[1] :, None]
        middle = self.bias_by_distance.shape[1] // 2
        return self.bias_by_distance[:, middle + distances], layer.gate(q)
