"""Small encoders of random weights: the reference's, and the extension's of the same bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from salmonrun.kernels import encoder_reference as reference
from salmonrun.kernels.cpu import load_native
from salmonrun.kernels.formats import F32, Bytes, pack_bfloat16_t16, pack_floats_t16
from salmonrun.kernels.reference import Bfloat16Linear, FloatLinear, Product
from tests.helpers.native_llms import native_matrix, random_linear

Encoded = tuple[F32, Bytes]  # states [n, dim], and what is kept [layers, positions, position_bytes]


@dataclass(frozen=True)
class Shape:
    """Odd on purpose: nothing is a whole number of blocks or lanes."""

    heads: int = 3
    head_dim: int = 24
    ffn: int = 101
    layers: int = 2
    norm_first: bool = True
    norm: bool = True  # behind the last layer
    gated: bool = False
    longest: int = 400  # positions, with gates
    rank: int | None = None  # of fc1 and out
    floats: bool = False
    bfloat16: bool = False
    bits: Literal[4, 8] = 8
    block: int = 32
    activation_block: int = 64
    key_bias: bool = False  # Whisper's have none
    exact: tuple[str, ...] = ()  # products that are of floats beside others of integers: "0.qkv", "1.fc2"

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


def random_bfloat16(rng: np.random.Generator, rows: int, columns: int, bias: bool) -> Bfloat16Linear:
    floats = random_floats(rng, rows, columns, bias)
    weight = floats.packed.transpose(0, 2, 1).reshape(-1, columns)[:rows]
    return Bfloat16Linear(pack_bfloat16_t16(weight), rows, columns, floats.bias)


def random_floats(rng: np.random.Generator, rows: int, columns: int, bias: bool) -> FloatLinear:
    weight = rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)
    shift = rng.normal(0, 0.1, rows).astype(np.float32) if bias else None
    return FloatLinear(pack_floats_t16(weight), rows, columns, shift)


def random_encoder(shape: Shape, seed: int = 0) -> reference.Encoder:
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, bias: bool = True, product: str = "") -> Product:
        if shape.bfloat16:
            return random_bfloat16(rng, rows, columns, bias)
        if shape.floats or product in shape.exact:
            return random_floats(rng, rows, columns, bias)
        return random_linear(rng, rows, columns, shape.bits, shape.block, shape.activation_block, bias)

    def thin(rows: int, columns: int, product: str) -> Product:
        if shape.rank is None:
            return matrix(rows, columns, product=product)
        up, down = matrix(rows, shape.rank, product=product), matrix(shape.rank, columns, False, product)
        return reference.LowRank(up, down)

    def norm() -> reference.LayerNorm:
        weight, bias = rng.uniform(0.5, 1.5, shape.dim), rng.normal(0, 0.1, shape.dim)
        return reference.LayerNorm(weight.astype(np.float32), bias.astype(np.float32), 1e-5)

    def gate() -> reference.Gate:
        weight, bias = rng.normal(0, shape.head_dim**-0.5, (2, shape.head_dim)), rng.normal(0, 0.5, 2)
        scale = rng.normal(1, 0.5, shape.heads)
        return reference.Gate(*(part.astype(np.float32) for part in (weight, bias, scale)))

    def layer(number: int) -> reference.EncoderLayer:
        return reference.EncoderLayer(
            q=matrix(shape.dim, shape.dim, product=f"{number}.qkv"),
            k=matrix(shape.dim, shape.dim, shape.key_bias, f"{number}.qkv"),
            v=matrix(shape.dim, shape.dim, product=f"{number}.qkv"),
            out=thin(shape.dim, shape.dim, f"{number}.out"),
            fc1=thin(shape.ffn, shape.dim, f"{number}.fc1"),
            fc2=matrix(shape.dim, shape.ffn, product=f"{number}.fc2"),
            attention_norm=norm(),
            mlp_norm=norm(),
            gate=gate() if shape.gated else None,
        )

    layers = [layer(number) for number in range(shape.layers)]
    by_distance = rng.normal(0, 1, (shape.heads, 2 * shape.longest - 1)).astype(np.float32)
    return reference.Encoder(
        layers=layers,
        heads=shape.heads,
        norm_first=shape.norm_first,
        norm=norm() if shape.norm else None,
        bias_by_distance=by_distance if shape.gated else None,
        cache_dtype=np.float32 if shape.floats or shape.bfloat16 else np.int8,
    )


def random_positions(count: int, dim: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(0, 1, (count, dim)).astype(np.float32)


def native_linear(product: Any) -> Any:
    if isinstance(product, reference.LowRank):
        return load_native().Linear(*(native_matrix(matrix) for matrix in (product.up, product.down)))  # type: ignore[arg-type]
    return load_native().Linear(native_matrix(product))


def native_norm(norm: reference.LayerNorm) -> Any:
    return load_native().LayerNorm(norm.weight, norm.bias, norm.eps)


def native_layer(layer: reference.EncoderLayer) -> Any:
    return load_native().EncoderLayer(
        **{name: native_linear(getattr(layer, name)) for name in ("q", "k", "v", "out", "fc1", "fc2")},
        attention_norm=native_norm(layer.attention_norm),
        mlp_norm=native_norm(layer.mlp_norm),
        gate=layer.gate and load_native().Gate(layer.gate.weight, layer.gate.bias, layer.gate.scale),
    )


class NativeEncoder:
    """The extension's encoder, with whole recordings as the unit."""

    def __init__(self, encoder: reference.Encoder, instruction_set: str, threads: int) -> None:
        self.native = load_native().Encoder(
            layers=[native_layer(layer) for layer in encoder.layers],
            heads=encoder.heads,
            norm_first=encoder.norm_first,
            norm=encoder.norm and native_norm(encoder.norm),
            bias_by_distance=encoder.bias_by_distance,
            instruction_set=instruction_set,
            threads=threads,
        )
        self.layers = len(encoder.layers)

    def forward(self, x: F32, counts: Sequence[int], past: list[Bytes], present: list[Bytes]) -> F32:
        """As the extension's, but that `x` stays what it is."""
        states = x.copy()
        self.native.forward(states, np.array(counts, np.int32), past, present)
        return states

    def encode(self, *recordings: tuple[F32, Bytes | None]) -> list[Encoded]:
        """New positions of each recording, behind what was kept of it."""
        counts = [len(x) for x, _ in recordings]
        past = [self.room(0) if before is None else before for _, before in recordings]
        present = [self.room(one.shape[1] + count) for one, count in zip(past, counts, strict=True)]
        states = self.forward(np.concatenate([x for x, _ in recordings]), counts, past, present)
        return list(zip(np.split(states, np.cumsum(counts)[:-1]), present, strict=True))

    def __call__(self, x: F32, past: Bytes | None = None) -> Encoded:
        """One recording's, as the reference has it."""
        return self.encode((x, past))[0]

    def room(self, positions: int) -> Bytes:
        """For what is kept of a recording."""
        return np.zeros((self.layers, positions, self.native.position_bytes), np.uint8)


def in_blocks(encoder: Callable[[F32, Bytes | None], Encoded], x: F32, *cuts: int) -> Encoded:
    """One recording, block by block: each sees what was kept of those before, and its own positions."""
    states, kept = [], None
    for block in np.split(x, cuts):
        found, kept = encoder(block, kept)
        states.append(found)
    assert kept is not None
    return np.concatenate(states), kept


def same_bits(found: Any, expected: Any) -> None:
    """Of arrays, or of lists and tuples of them."""
    if isinstance(found, list | tuple):
        for one, other in zip(found, expected, strict=True):
            same_bits(one, other)
        return
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    integers = np.dtype(f"u{found.itemsize}")
    np.testing.assert_array_equal(found.view(integers), expected.view(integers))
