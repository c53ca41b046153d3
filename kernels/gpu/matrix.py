"""Matrices as docs/bundle.md has them in `torch`, and the tiles of them that a program multiplies with.

A tile has STEP inputs, as two halves of STEP / 2 which are multiplied one after the other: of 4 bits, those of even and
of odd place, so that the two values of a byte need not change places; else the first and the last ones.

nf4 looks each value up by itself. A table of the 256 pairs would halve the look-ups, but has 2 KiB, 16 lines of the
cache, of which the threads of a warp would want most; the 16 values are one line, and wanted by all of them at once.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from salmonrun.kernels.formats import NF4
from salmonrun.kernels.gpu.launch import dot

Kind = Literal["float", "int8", "int4", "nf4"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, eq=False)
class NestedScales:
    """Scales that are quantized in turn, as bitsandbytes has them: code[index] * outer + offset."""

    indices: Tensor  # [out, blocks] in uint8
    code: Tensor  # [256] in float32
    outer: Tensor  # one for each `block` of the flattened indices, in float32
    offset: float
    block: int  # indices that share an outer scale


@dataclass(eq=False)
class Matrix:
    """A matrix [out, in], packed or not, and its bias."""

    kind: Kind
    values: Tensor  # [out, in] in floats; or packed [out, blocks, block * bits / 8] in uint8
    scales: Tensor | NestedScales | None  # [out, blocks] in float32, of what is packed
    columns: int  # inputs
    bias: Tensor | None = None  # [out]
    table: Tensor | None = field(default=None, init=False)  # [16] in float32, of nf4

    def __post_init__(self) -> None:
        if self.kind != "float" and self.scales is None:
            raise ValueError(f"a matrix of {self.kind} without scales; what is packed has them")
        if self.kind == "float" and self.scales is not None:
            raise ValueError("a matrix of float with scales; only what is packed has them")
        if self.kind == "nf4":
            self.table = torch.from_numpy(NF4.copy()).to(self.values.device)

    @property
    def rows(self) -> int:
        """Outputs."""
        return len(self.values)

    @property
    def block(self) -> int:
        """Inputs that share a scale; 1 in floats."""
        return 1 if self.kind == "float" else self.values.shape[2] * (1 if self.kind == "int8" else 2)

    @property
    def arguments(self) -> dict[str, Any]:
        """What kernels take of it."""
        nested = self.scales if isinstance(self.scales, NestedScales) else None
        return {
            "values": self.values,
            "scales": nested.indices if nested else self.scales,
            "code": nested.code if nested else None,
            "outer": nested.outer if nested else None,
            "offset": nested.offset if nested else 0.0,
            "table": self.table,
            "bias": self.bias,
            "KIND": self.kind,
            "BLOCK": self.block,
            "NESTED": nested.block if nested else 0,
        }


@triton.jit
def input_columns(tile: tl.tensor, KIND: tl.constexpr, STEP: tl.constexpr) -> tl.tensor:
    """The inputs [STEP / 2] that the halves of a tile have."""
    places = tl.arange(0, STEP // 2)
    if KIND == "int4" or KIND == "nf4":
        first, second = 2 * places, 2 * places + 1
    else:
        first, second = places, STEP // 2 + places
    return tile * STEP + first, tile * STEP + second


@triton.jit
def add_products(
    total: tl.tensor,  # [OUTPUTS, ROWS]
    first: tl.tensor,  # [STEP / 2, ROWS]: inputs
    second: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    code: tl.tensor,
    outer: tl.tensor,
    offset: tl.tensor,
    table: tl.tensor,
    outputs: tl.tensor,  # [OUTPUTS]
    there: tl.tensor,  # [OUTPUTS]: whether they are
    k: tl.tensor,
    tile: tl.tensor,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    STEP: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """`total` and the products of one tile."""
    if KIND == "float":
        near, far = input_columns(tile, KIND, STEP)
        rows = values + outputs[:, None].to(tl.int64) * k
        left = tl.load(rows + near[None, :], mask=there[:, None] & (near < k)[None, :], other=0)
        right = tl.load(rows + far[None, :], mask=there[:, None] & (far < k)[None, :], other=0)
    elif KIND == "int8":
        left = _bytes(values, scales, code, outer, offset, outputs, there, k, 2 * tile, BLOCK, NESTED, STEP // 2)
        right = _bytes(values, scales, code, outer, offset, outputs, there, k, 2 * tile + 1, BLOCK, NESTED, STEP // 2)
    else:
        left, right = _nibbles(
            values, scales, code, outer, offset, table, outputs, there, k, tile, KIND, BLOCK, NESTED, STEP
        )
    return dot(right, second, dot(left, first, total, DTYPE), DTYPE)


@triton.jit
def _packed(
    values: tl.tensor,
    scales: tl.tensor,
    code: tl.tensor,
    outer: tl.tensor,
    offset: tl.tensor,
    outputs: tl.tensor,
    there: tl.tensor,
    k: tl.tensor,
    first: tl.tensor,  # block
    BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    BLOCKS: tl.constexpr,
    BYTES: tl.constexpr,  # of a block
) -> tl.tensor:
    """Some blocks [OUTPUTS, BLOCKS, BYTES], zeros where there is none, and their scales [OUTPUTS, BLOCKS]."""
    count = tl.cdiv(k, BLOCK)
    blocks = first + tl.arange(0, BLOCKS)
    seen = there[:, None] & (blocks < count)[None, :]
    places = outputs[:, None].to(tl.int64) * count + blocks[None, :]
    inside = tl.arange(0, BYTES)
    packed = tl.load(values + places[:, :, None] * BYTES + inside[None, None, :], mask=seen[:, :, None], other=0)
    scale = tl.load(scales + places, mask=seen, other=0)
    if NESTED > 0:
        scale = tl.load(code + scale.to(tl.int32)) * tl.load(outer + places // NESTED, mask=seen, other=0) + offset
    return packed, scale


@triton.jit
def _bytes(
    values: tl.tensor,
    scales: tl.tensor,
    code: tl.tensor,
    outer: tl.tensor,
    offset: tl.tensor,
    outputs: tl.tensor,
    there: tl.tensor,
    k: tl.tensor,
    part: tl.tensor,
    BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    INPUTS: tl.constexpr,
) -> tl.tensor:
    """What values of 8 bits stand for [OUTPUTS, INPUTS]."""
    first = part * (INPUTS // BLOCK)
    packed, scale = _packed(
        values, scales, code, outer, offset, outputs, there, k, first, BLOCK, NESTED, INPUTS // BLOCK, BLOCK
    )
    whole = (packed.to(tl.float32) - 128) * scale[:, :, None]
    return tl.reshape(whole, [outputs.shape[0], INPUTS])


@triton.jit
def _nibbles(
    values: tl.tensor,
    scales: tl.tensor,
    code: tl.tensor,
    outer: tl.tensor,
    offset: tl.tensor,
    table: tl.tensor,
    outputs: tl.tensor,
    there: tl.tensor,
    k: tl.tensor,
    tile: tl.tensor,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    STEP: tl.constexpr,
) -> tl.tensor:
    """What values of 4 bits stand for: those of even and those of odd place [OUTPUTS, STEP / 2]."""
    first = tile * (STEP // BLOCK)
    packed, scale = _packed(
        values, scales, code, outer, offset, outputs, there, k, first, BLOCK, NESTED, STEP // BLOCK, BLOCK // 2
    )
    low, high = (packed & 15).to(tl.int32), (packed >> 4).to(tl.int32)
    if KIND == "nf4":
        even, odd = tl.load(table + high), tl.load(table + low)
    else:
        even, odd = low.to(tl.float32) - 8, high.to(tl.float32) - 8
    even, odd = even * scale[:, :, None], odd * scale[:, :, None]
    return tl.reshape(even, [outputs.shape[0], STEP // 2]), tl.reshape(odd, [outputs.shape[0], STEP // 2])
