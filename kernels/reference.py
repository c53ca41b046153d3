"""What the native kernels compute, to the bit: their specification, in numpy. Slow, and easy to read.

Every result is defined by one order of float32 operations that does not depend on what is computed beside it: not on
the batch, on how a prompt is cut, on the number of threads, or on the width of a processor's registers. Where
it says `fma`, product and sum are rounded once. Integer sums are exact, so they have no order.

- A row is summed in 16 lanes: lane l has elements l, l + 16, ... in order; then lanes l and l + 8 are added, l and
  l + 4, l + 2, l + 1. Rows end in zeros, up to whole lanes.
- Experts of a mixture are added in the order of their numbers, those that a position did not choose left out.
- A product walks over blocks of inputs in order. Outputs lie in lanes, so that nothing is summed across these.
- Attention sees positions in order, in lanes by their place in the sequence and not in the chunk.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from salmonrun.kernels.formats import (
    F16,
    F32,
    SUPER_BLOCK,
    Bytes,
    multiply_t16,
    round_bfloat16,
    unpack_bfloat16_t16,
    unpack_floats_t16,
    unpack_nf4_t16,
    unpack_t16,
)

LANES = 16
ACTIVATION_BLOCKS = (32, 64, 128, 256)

_LOG2E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # 9 bits, so that its products with exponents are exact
_LN2_LOW = np.float32(-2.12194440e-4)
_EXP_LOWEST = np.float32(-87)  # e to less is 0: the result stays clear of subnormal numbers
_EXP_LARGEST = np.float32(88)
# e ** r on -ln 2 / 2 .. ln 2 / 2, highest power first: Cephes' expf (Moshier 1989), of 2e-8 relative error.
_EXP_TERMS = tuple(np.float32(term) for term in (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
))  # fmt: skip

SMALLEST = np.float32(1e-30)  # a block of activations that has no more than this counts as zeros


def fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> F32:
    """a * b + c in float32, rounded once.

    float64 holds a product of two float32 exactly, but the sum would be rounded twice. So it is rounded to odd: where
    it is not exact, the neighbour with the last bit set is taken, from which float32 rounds as from the exact sum
    (Boldo and Melquiond 2008).
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = np.asarray(product + addend)
        back = total - product
        error = (product - (total - back)) + (addend - back)  # Knuth's two-sum: exact
        even = (total.view(np.int64) & 1) == 0
        odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        exact = (error == 0) | ~np.isfinite(total)
        return np.asarray(np.where(even & ~exact, odd, total).astype(np.float32))


def sum_lanes(lanes: F32) -> F32:
    """The sum over 16 lanes [..., 16]: halves are added to halves."""
    width = LANES
    while width > 1:
        width //= 2
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return lanes[..., 0]


def _to_lanes(x: F32) -> F32:
    """Rows [..., n] as [..., ceil(n / 16), 16], zeros behind them."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % LANES)])
    return padded.reshape(*x.shape[:-1], -1, LANES)


def sum_rows(x: F32) -> F32:
    """The sums of rows [..., n]."""
    lanes = _to_lanes(x)
    totals = np.zeros_like(lanes[..., 0, :])
    for i in range(lanes.shape[-2]):
        totals = totals + lanes[..., i, :]
    return sum_lanes(totals)


def dot(x: F32, weight: F32) -> F32:
    """Products of rows [..., n] with the rows of an unquantized matrix [m, n]: [..., m]."""
    x_lanes, weight_lanes = _to_lanes(x)[..., None, :, :], _to_lanes(weight)
    totals = np.zeros((*x.shape[:-1], len(weight), LANES), np.float32)
    for i in range(weight_lanes.shape[-2]):
        totals = fma(x_lanes[..., i, :], weight_lanes[..., i, :], totals)
    return sum_lanes(totals)


def exp(x: F32) -> F32:
    """e ** x; 0 below -87, and no more than e ** 88."""
    clamped = np.minimum(np.maximum(x, _EXP_LOWEST), _EXP_LARGEST)
    exponent = np.rint(clamped * _LOG2E)
    r = fma(-exponent, _LN2_HIGH, clamped)
    r = fma(-exponent, _LN2_LOW, r)
    y = np.full_like(r, _EXP_TERMS[0])
    for term in _EXP_TERMS[1:]:
        y = fma(y, r, term)
    y = fma(y, r * r, r) + np.float32(1)
    power: F32 = np.ldexp(np.float32(1), exponent.astype(np.int32))
    return np.where(x < _EXP_LOWEST, np.float32(0), y * power)


def silu_mul(gate: F32, up: F32) -> F32:
    """SwiGLU's product: gate * sigmoid(gate) * up."""
    sigmoid_inverse = exp(-gate) + np.float32(1)
    return gate / sigmoid_inverse * up


def sum_squares(x: F32) -> F32:
    """The sums of the squares of rows [..., n]."""
    lanes = _to_lanes(x)
    squares = np.zeros_like(lanes[..., 0, :])
    for i in range(lanes.shape[-2]):
        squares = fma(lanes[..., i, :], lanes[..., i, :], squares)
    return sum_lanes(squares)


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """Rows [..., n] over their root mean square, times `weight` [n]."""
    mean = sum_squares(x) / np.float32(x.shape[-1])
    inverse: F32 = np.float32(1) / np.sqrt(mean + np.float32(eps))
    return x * inverse[..., None] * weight


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Rotary positions: the halves of each head turned against each other.

    Args:
        x: [..., head_dim].
        cos: of the position, [..., head_dim / 2].
        sin: the same.
    """
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([fma(first, cos, -(second * sin)), fma(second, cos, first * sin)], axis=-1)


def quantize_activations(x: F32, block: int) -> tuple[npt.NDArray[np.int8], F32]:
    """Symmetric 8-bit integers, one scale for each `block` neighbours of a row.

    Args:
        x: [rows, n].
        block: one of ACTIVATION_BLOCKS; the last of a row may be cut.

    Returns:
        values [rows, blocks * block], zeros behind a row, and scales [rows, blocks].
    """
    blocks = np.pad(x, ((0, 0), (0, -x.shape[1] % block))).reshape(len(x), -1, block)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > SMALLEST)
    values = np.clip(np.rint(blocks * inverse), -127, 127).astype(np.int8)
    return values.reshape(len(x), -1), (largest / np.float32(127))[..., 0]


class Product(Protocol):
    """What a layer does with a matrix: `Linear`, `Nf4Linear`, `FloatLinear`, or a test's own."""

    def __call__(self, x: F32, /) -> F32:
        """[n, columns] to [n, rows]."""
        ...


@dataclass(frozen=True, eq=False)
class Linear:
    """A quantized matrix, and how its inputs are quantized: layout t16 of `salmonrun.kernels.formats`."""

    packed: Bytes  # [groups of 16 outputs, 32s of inputs, bits, 64]
    scales: F16  # [groups, blocks, 16]
    rows: int  # outputs
    columns: int  # inputs
    activation_block: int  # a multiple of the weights' block
    bias: F32 | None = None  # [rows]
    multiples: npt.NDArray[np.int8] | None = None  # [groups, blocks that share one, 16], of int4 with super-blocks

    @property
    def block(self) -> int:
        """Inputs that share a scale of the weights."""
        return int(32 * self.packed.shape[1] // self.scales.shape[1]) if self.multiples is None else SUPER_BLOCK

    def __call__(self, x: F32) -> F32:
        """[n, columns] to [n, rows]."""
        values, x_scales = quantize_activations(x, self.activation_block)
        whole = unpack_t16(self.packed) if self.multiples is None else multiply_t16(self.packed, self.multiples)
        weight = np.pad(whole, ((0, 0), (0, max(0, values.shape[1] - whole.shape[1])))).astype(np.int32)
        scales = self.scales.transpose(1, 0, 2).reshape(self.scales.shape[1], -1).astype(np.float32)  # [blocks, out]
        blocks = self.activation_block // self.block
        out = np.zeros((len(x), len(weight)), np.float32)
        for i in range(x_scales.shape[1]):
            part = np.zeros_like(out)
            for j in range(i * blocks, min((i + 1) * blocks, len(scales))):
                inputs = slice(j * self.block, (j + 1) * self.block)
                dots = values[:, inputs].astype(np.int32) @ weight[:, inputs].T  # exact
                part = fma(dots, scales[j], part)
            out = fma(part, x_scales[:, i : i + 1], out)
        out = out[:, : self.rows]
        return out if self.bias is None else out + self.bias


@dataclass(frozen=True, eq=False)
class Nf4Linear:
    """A matrix of nf4 in layout t16, whose products are of floats: its inputs are not quantized."""

    packed: Bytes  # [groups of 16 outputs, 32s of inputs, 4, 64]
    scales: F32  # [groups, blocks, 16]
    rows: int  # outputs
    columns: int  # inputs
    bias: F32 | None = None  # [rows]

    @property
    def block(self) -> int:
        """Inputs that share a scale."""
        return int(32 * self.packed.shape[1] // self.scales.shape[1])

    def __call__(self, x: F32) -> F32:
        """[n, columns] to [n, rows]."""
        weight = unpack_nf4_t16(self.packed)
        inputs = np.pad(x, ((0, 0), (0, weight.shape[1] - x.shape[1])))
        scales = self.scales.transpose(1, 0, 2).reshape(self.scales.shape[1], -1)  # [blocks, out]
        out = np.zeros((len(x), len(weight)), np.float32)
        for i, scale in enumerate(scales):
            part = np.zeros_like(out)
            for column in range(i * self.block, (i + 1) * self.block):
                part = fma(inputs[:, column, None], weight[:, column], part)
            out = fma(part, scale, out)
        out = out[:, : self.rows]
        return out if self.bias is None else out + self.bias


@dataclass(frozen=True, eq=False)
class FloatLinear:
    """A matrix of float32 in layout t16. Its inputs are added one by one."""

    packed: F32  # [groups of 16 outputs, columns, 16]
    rows: int  # outputs
    columns: int  # inputs
    bias: F32 | None = None  # [rows]

    def __call__(self, x: F32) -> F32:
        """[n, columns] to [n, rows]."""
        weight = unpack_floats_t16(self.packed)[: self.rows]
        out = np.zeros((len(x), self.rows), np.float32)
        for column in range(self.columns):
            out = fma(x[:, column, None], weight[:, column], out)
        return out if self.bias is None else out + self.bias


@dataclass(frozen=True, eq=False)
class Bfloat16Linear:
    """A matrix of bfloat16 in layout t16. Its inputs are rounded, and added pair by pair, the second of a pair first.

    Processors have an instruction for this (Intel's manual, volume 2, VDPBF16PS).
    """

    packed: npt.NDArray[np.uint16]  # [groups of 16 outputs, pairs of columns, 16, 2]
    rows: int  # outputs
    columns: int  # inputs
    bias: F32 | None = None  # [rows]

    def __call__(self, x: F32) -> F32:
        """[n, columns] to [n, rows]."""
        out = sum_pairs(round_bfloat16(x), unpack_bfloat16_t16(self.packed)[: self.rows, : self.columns])
        return out if self.bias is None else out + self.bias


def sum_pairs(x: F32, weight: F32) -> F32:
    """Products of rows [..., n, inputs] with those of a matrix [..., m, inputs], in the order of VDPBF16PS."""
    inputs = x.shape[-1]
    out = np.zeros((*x.shape[:-1], weight.shape[-2]), np.float32)
    for pair in range(0, inputs, 2):
        for i in (pair + 1, pair):
            if i < inputs:
                out = fma(x[..., i, None], weight[..., None, :, i], out)
    return out


def cached(x: F32, dtype: type[np.float16 | np.int8 | np.float32]) -> F32:
    """What the cache makes of keys or values [n, heads, head_dim]; int8 has a scale for each head and position."""
    if dtype is not np.int8:
        return x.astype(dtype).astype(np.float32)
    values, scales = quantize_activations(x.reshape(-1, x.shape[-1]), x.shape[-1])
    return (values.astype(np.float32) * scales).reshape(x.shape)


def attend(q: F32, keys: F32, values: F32, visible: npt.NDArray[np.bool_]) -> F32:
    """Queries of one sequence over its positions.

    Args:
        q: [heads, queries, head_dim], times 1 / sqrt(head_dim).
        keys: [heads, positions, head_dim], as the cache has rounded them, repeated for heads that share them.
        values: the same.
        visible: [queries, positions]; neighbouring positions, of which each query sees at least one.

    Returns:
        [heads, queries, head_dim].
    """
    scores = np.zeros((*q.shape[:2], keys.shape[1]), np.float32)
    for d in range(q.shape[2]):
        scores = fma(q[:, :, d, None], keys[:, None, :, d], scores)
    scores = np.where(visible, scores, np.float32(-np.inf))
    weights = exp(scores - scores.max(axis=2, keepdims=True))  # 0 where nothing is seen: such terms change no sum
    out = np.zeros_like(q)
    for position in range(keys.shape[1]):
        out = fma(weights[:, :, position, None], values[:, None, position], out)
    return out / sum_rows(weights)[:, :, None]


@dataclass(frozen=True, eq=False)
class Mlp:
    """SwiGLU between two products."""

    gate: Product
    up: Product
    down: Product

    def __call__(self, x: F32, /) -> F32:
        """[n, dim] to [n, dim]."""
        return self.down(silu_mul(self.gate(x), self.up(x)))


@dataclass(frozen=True, eq=False)
class Mixture:
    """Experts, of which each position is computed by a few: Mixtral's, and Qwen's with one that computes all."""

    router: F32  # [experts, dim]
    experts: list[Mlp]
    per_token: int
    normalised: bool  # the weights of those chosen are made to sum to one
    shared: Mlp | None = None
    shared_gate: F32 | None = None  # [1, dim]: how much of it, before a sigmoid

    def __call__(self, x: F32, /) -> F32:
        """[n, dim] to [n, dim]."""
        chosen, weights = self._choose(x)
        total = np.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, places = np.nonzero(chosen == number)
            if len(rows):
                total[rows] = fma(weights[rows, places, None], expert(x[rows]), total[rows])
        if self.shared is None or self.shared_gate is None:
            return total
        sigmoid = np.float32(1) / (exp(-dot(x, self.shared_gate)) + np.float32(1))  # [n, 1]
        return fma(sigmoid, self.shared(x), total)

    def _choose(self, x: F32) -> tuple[npt.NDArray[np.intp], F32]:
        """Numbers [n, per_token] of the likeliest experts, of two alike the first, and their weights."""
        logits = dot(x, self.router)
        shares = exp(logits - logits.max(axis=1, keepdims=True))
        shares = shares / sum_rows(shares)[:, None]
        chosen = np.argsort(-shares, axis=1, kind="stable")[:, : self.per_token]
        weights = np.take_along_axis(shares, chosen, axis=1)
        if not self.normalised:
            return chosen, weights
        total = np.zeros(len(x), np.float32)
        for share in weights.T:  # the largest first
            total = total + share
        return chosen, weights / total[:, None]


@dataclass(frozen=True, eq=False)
class Layer:
    """One decoder layer of the Llama family."""

    input_norm: F32  # [dim]
    q: Product
    k: Product
    v: Product
    o: Product
    post_norm: F32
    mlp: Mlp | Mixture
    q_norm: F32 | None = None  # [head_dim]
    k_norm: F32 | None = None
    window: int | None = None  # positions it sees, its own included; None: all


@dataclass(frozen=True, eq=False)
class Model:
    """An LLM of the Llama family behind its embeddings."""

    layers: list[Layer]
    norm: F32
    head: Product
    cos: F32  # [max_length, head_dim / 2]
    sin: F32
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    cache_dtype: type[np.float16 | np.int8 | np.float32] = np.float16  # float32 proves the rest of the graph

    def logits(self, embeds: F32) -> F32:
        """After each position of one sequence: [n, dim] to [n, vocab]. Whole or in parts: the same bits."""
        x = embeds
        for layer in self.layers:
            x = x + layer.o(self._attention(layer, rms_norm(x, layer.input_norm, self.eps)))
            x = x + layer.mlp(rms_norm(x, layer.post_norm, self.eps))
        return self.head(rms_norm(x, self.norm, self.eps))

    def _attention(self, layer: Layer, x: F32) -> F32:
        """[n, dim] to [n, heads * head_dim]."""
        q, k, v = (
            linear(x).reshape(len(x), -1, self.head_dim) for linear in (layer.q, layer.k, layer.v)
        )  # [n, heads, head_dim]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = rms_norm(q, layer.q_norm, self.eps), rms_norm(k, layer.k_norm, self.eps)
        cos, sin = self.cos[: len(x), None], self.sin[: len(x), None]
        q = rotate(q, cos, sin) * np.float32(self.head_dim**-0.5)
        keys, values = (cached(part, self.cache_dtype) for part in (rotate(k, cos, sin), v))
        places = np.arange(len(x))
        distance = places[:, None] - places  # of each position behind each query
        visible = (distance >= 0) & (distance < (layer.window or len(x)))
        q, keys, values = (part.transpose(1, 0, 2) for part in (q, keys, values))  # [heads, n, head_dim]
        shared = self.heads // self.kv_heads
        out = attend(q, keys.repeat(shared, axis=0), values.repeat(shared, axis=0), visible)
        return out.transpose(1, 0, 2).reshape(len(x), -1)
