"""Small encoders of random weights: the reference's, and the extension's of the same bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from salmonrun.kernels import encoder_reference as reference
from salmonrun.kernels.cpu import load_native
from salmonrun.kernels.formats import F32, Bytes, pack_floats_t16
from salmonrun.kernels.reference import FloatLinear, Product
from tests.helpers.native_llms import native_matrix, random_linear


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
    bits: Literal[4, 8] = 8
    block: int = 32
    activation_block: int = 64
    key_bias: bool = False  # Whisper's have none

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


def random_floats(rng: np.random.Generator, rows: int, columns: int, bias: bool) -> FloatLinear:
    weight = rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)
    shift = rng.normal(0, 0.1, rows).astype(np.float32) if bias else None
    return FloatLinear(pack_floats_t16(weight), rows, columns, shift)


def random_encoder(shape: Shape, seed: int = 0) -> reference.Encoder:
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, bias: bool = True) -> Product:
        if shape.floats:
            return random_floats(rng, rows, columns, bias)
        return random_linear(rng, rows, columns, shape.bits, shape.block, shape.activation_block, bias)

    def thin(rows: int, columns: int) -> Product:
        if shape.rank is None:
            return matrix(rows, columns)
        return reference.LowRank(matrix(rows, shape.rank), matrix(shape.rank, columns, bias=False))

    def norm() -> reference.LayerNorm:
        weight, bias = rng.uniform(0.5, 1.5, shape.dim), rng.normal(0, 0.1, shape.dim)
        return reference.LayerNorm(weight.astype(np.float32), bias.astype(np.float32), 1e-5)

    def gate() -> reference.Gate:
        weight, bias = rng.normal(0, shape.head_dim**-0.5, (2, shape.head_dim)), rng.normal(0, 0.5, 2)
        scale = rng.normal(1, 0.5, shape.heads)
        return reference.Gate(*(part.astype(np.float32) for part in (weight, bias, scale)))

    def layer() -> reference.EncoderLayer:
        return reference.EncoderLayer(
            q=matrix(shape.dim, shape.dim),
            k=matrix(shape.dim, shape.dim, shape.key_bias),
            v=matrix(shape.dim, shape.dim),
            out=thin(shape.dim, shape.dim),
            fc1=thin(shape.ffn, shape.dim),
            fc2=matrix(shape.dim, shape.ffn),
            attention_norm=norm(),
            mlp_norm=norm(),
            gate=gate() if shape.gated else None,
        )

    layers = [layer() for _ in range(shape.layers)]
    by_distance = rng.normal(0, 1, (shape.heads, 2 * shape.longest - 1)).astype(np.float32)
    return reference.Encoder(
        layers=layers,
        heads=shape.heads,
        norm_first=shape.norm_first,
        norm=norm() if shape.norm else None,
        bias_by_distance=by_distance if shape.gated else None,
        cache_dtype=np.float32 if shape.floats else np.int8,
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

    def __call__(
        self, *recordings: F32, past: Sequence[Bytes] | None = None, keep: bool = True
    ) -> list[tuple[F32, Bytes]]:
        """States of each recording's new positions, and what is kept of it: nothing of them, without `keep`."""
        before = [self.nothing for _ in recordings] if past is None else list(past)
        counts = [len(recording) for recording in recordings]
        sizes = [before.shape[1] + count for before, count in zip(before, counts, strict=True)] if keep else []
        present = [np.zeros((self.layers, size, self.native.position_bytes), np.uint8) for size in sizes]
        states = self.forward(np.concatenate(recordings), counts, before, present)
        return list(zip(np.split(states, np.cumsum(counts)[:-1]), present or before, strict=True))

    @property
    def nothing(self) -> Bytes:
        """What is kept at the beginning."""
        return np.zeros((self.layers, 0, self.native.position_bytes), np.uint8)

    def in_blocks(self, x: F32, *cuts: int) -> tuple[F32, Bytes]:
        """One recording, block by block: each sees what was kept of those before, and its own positions."""
        return in_blocks(lambda block, past: self(block, past=[past])[0], x, self.nothing, *cuts)


def in_blocks(encode: Any, x: F32, past: Bytes, *cuts: int) -> tuple[F32, Bytes]:
    """`encode` [n, dim] and past to states and present, block by block."""
    states = []
    for block in np.split(x, cuts):
        found, past = encode(block, past)
        states.append(found)
    return np.concatenate(states), past
