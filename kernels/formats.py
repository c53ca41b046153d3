"""Weight formats: what the quantized numbers of a bundle or a published file mean, and how they lie in memory.

Two families, both with one scale for each block of neighbouring values:

- **Blocks** (int4, int8): symmetric integers, blocks along a row. ONNX Runtime's MatMulNBits stores them so. Where int4
  has super-blocks, the scales of the blocks in one are whole multiples of one number.
- **Tables** (nf4, fp4): indices into 16 values, blocks along the flattened matrix. bitsandbytes stores them so
  (bitsandbytes/functional.py and backends/default/ops.py at 0.50).

A byte holds two 4-bit values: blocks have the first one in the low half, tables in the high half.
"""

from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
Number = TypeVar("Number", np.int8, np.float16, np.float32)
Half = Literal["low", "high"]

BLOCK_SIZES = (32, 64, 128)  # of int4 and int8 blocks
BLOCK_BITS = (4, 8)


def _table(*values: float) -> F32:
    table = np.array(values, np.float32)
    table.setflags(write=False)
    return table


# Quantiles of the normal distribution (QLoRA, Dettmers et al. 2023, appendix E).
NF4 = _table(
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_NF4_ZERO = 7  # the index of 0
# A sign, two bits of exponent, one of mantissa, in the order of these bits; over the largest, 12.
FP4 = _table(*(sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3)))


def pack_nibbles(values: Bytes, first: Half) -> Bytes:
    """4-bit values [..., 2 n], one a byte, as [..., n]: the first of a pair in the `first` half of its byte."""
    even, odd = values[..., 0::2], values[..., 1::2]
    low, high = (even, odd) if first == "low" else (odd, even)
    return low | (high << np.uint8(4))


def unpack_nibbles(packed: Bytes, first: Half) -> Bytes:
    """[..., n] as 4-bit values [..., 2 n], one a byte."""
    low, high = packed & 15, packed >> 4
    pairs = np.stack([low, high] if first == "low" else [high, low], axis=-1)
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def quantize_blocks(weight: F32, bits: int, block: int) -> tuple[Bytes, F32]:
    """Symmetric integers, rounded to nearest, halves to even.

    A stored value q stands for (q - 2 ** (bits - 1)) * scale. Rows that are not whole blocks are filled with zeros.

    Args:
        weight: [out, in].
        bits: 4 or 8.
        block: values that share a scale.

    Returns:
        packed [out, blocks, block * bits / 8] and scales [out, blocks].

    Raises:
        ValueError: other bits or block sizes than BLOCK_BITS and BLOCK_SIZES.
    """
    quantized, scale = _quantize_blocks(weight, bits, block, np.float32)
    return quantized if bits == 8 else pack_nibbles(quantized, "low"), scale


def _quantize_blocks(weight: F32, bits: int, block: int, scale_dtype: npt.DTypeLike) -> tuple[Bytes, F32]:
    """Values [out, blocks, block], one a byte, and scales [out, blocks] that are numbers of `scale_dtype`."""
    _check_bits(bits)
    _check_block(block)
    rows, columns = weight.shape
    blocks = np.pad(weight, ((0, 0), (0, -columns % block))).reshape(rows, -1, block)
    zero_point = 2 ** (bits - 1)
    # The value of largest magnitude maps to the end of the range that has one step more.
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
    # [rows, blocks, 1]. Rounded before the values are, which so make up for it.
    scale = (largest / -zero_point).astype(scale_dtype).astype(np.float32)
    quantized = np.clip(np.rint(_over(blocks, scale)) + zero_point, 0, 2**bits - 1).astype(np.uint8)
    return quantized, scale[..., 0]


GROUP = 16  # outputs of a t16 group
LINE = 64  # bytes of a t16 line: 4 neighbouring inputs of each output of a group
LINES = 8  # lines of 32 inputs, two of which share one where values have 4 bits


def quantize_t16(weight: F32, bits: int, block: int) -> tuple[Bytes, F16]:
    """Blocks as `quantize_blocks` makes them, but with scales of 16 bits, in the layout of the native kernels.

    A line holds 4 neighbouring inputs of 16 outputs, so that 16 lanes of a register are 16 outputs, and an
    instruction that sums 4 products a lane takes it as it lies. Of 32 inputs there are 8 lines; 4-bit values of
    lines i and i + 4 share a line, those of line i in the low halves:

        line i    [ out 0: in 4i .. 4i+3 | out 1: in 4i .. 4i+3 | ... | out 15: in 4i .. 4i+3 ]

    Args:
        weight: [out, in].
        bits: 4 or 8.
        block: inputs that share a scale.

    Returns:
        packed [ceil(out / 16), 32s of inputs, bits, 64] and scales [ceil(out / 16), blocks, 16]; what is no output or
        input stands for zero.

    Raises:
        ValueError: other bits or block sizes than BLOCK_BITS and BLOCK_SIZES, or values too large for 16-bit scales.
    """
    with np.errstate(over="ignore"):
        values, scales = _quantize_blocks(weight, bits, block, np.float16)
    stored = scales.astype(np.float16)
    _check_scales(stored, weight, 2 ** (bits - 1))
    return _pack_t16(values.reshape(len(weight), -1), bits, 2 ** (bits - 1)), _pack_scales(stored)


def quantize_super_t16(weight: F32, block: int) -> tuple[Bytes, npt.NDArray[np.int8], F16]:
    """int4 in layout t16 (`quantize_t16`), with scales of two levels.

    A super-block of 128 inputs (the last may have fewer) has a scale of 16 bits, each block in it a whole multiple of
    that. A value q of 4 bits stands for (q - 8) * multiple * scale, where (q - 8) * multiple is a signed byte: so
    products with activations of 8 bits are sums of integers over whole super-blocks, and a matrix unit, which adds up
    integers, is not interrupted for each block. The multiples make the error less than one percent
    larger (docs/performance.md, "Numeric formats").

    Args:
        weight: [out, in].
        block: inputs that share a multiple.

    Returns:
        packed [ceil(out / 16), 32s of inputs, 4, 64], multiples [ceil(out / 16), blocks, 16] and scales
        [ceil(out / 16), super-blocks, 16]; what is no output or input stands for zero.

    Raises:
        ValueError: other block sizes than BLOCK_SIZES, or values too large for 16-bit scales.
    """
    values, multiples, scales = _quantize_super_blocks(weight, block)
    packed = _pack_t16(values.reshape(len(weight), -1), 4, 8)
    return packed, _pack_scales(multiples), _pack_scales(scales)


def _pack_t16(values: Bytes, bits: int, zero: int) -> Bytes:
    """Values [out, 32s of inputs], one a byte, as lines; `zero` stands where there is no output."""
    groups = -(-len(values) // GROUP)
    flat = np.pad(values, ((0, -len(values) % GROUP), (0, 0)), constant_values=zero)
    lines = flat.reshape(groups, GROUP, -1, LINES, 4).transpose(0, 2, 3, 1, 4).reshape(groups, -1, LINES, LINE)
    if bits == 4:
        lines = lines[:, :, : LINES // 2] | (lines[:, :, LINES // 2 :] << np.uint8(4))
    return np.ascontiguousarray(lines)


def _pack_scales(scales: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """[out, blocks] as [groups, blocks, 16]."""
    padded = np.pad(scales, ((0, -len(scales) % GROUP), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, GROUP, scales.shape[1]).transpose(0, 2, 1))


def pack_floats_t16(weight: F32) -> F32:
    """A matrix of float32 in the layout of the native kernels: inputs in order, 16 outputs of each together.

    Args:
        weight: [out, in].

    Returns:
        [ceil(out / 16), in, 16]; what is no output is zero.
    """
    padded = np.pad(weight, ((0, -len(weight) % GROUP), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, GROUP, weight.shape[1]).transpose(0, 2, 1))


def unpack_floats_t16(packed: F32) -> F32:
    """[groups, in, 16] as [out, in], filled up with zeros to whole groups."""
    return packed.transpose(0, 2, 1).reshape(GROUP * len(packed), -1)


_SMALLEST_BFLOAT16 = np.float32(2.0**-60)  # less is zero: sums of such products would leave the range of float32


def round_bfloat16(x: F32) -> F32:
    """The nearest bfloat16, halves to even; zero below 2 ** -60."""
    bits = np.where(np.abs(x) < _SMALLEST_BFLOAT16, np.float32(0), x).astype(np.float32).view(np.uint32)
    return (bits + (0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def pack_bfloat16_t16(weight: F32) -> npt.NDArray[np.uint16]:
    """A matrix of bfloat16 in the layout of the native kernels: pairs of inputs in order, those of 16 outputs together.

    Args:
        weight: [out, in].

    Returns:
        [ceil(out / 16), ceil(in / 2), 16, 2], rounded to nearest, halves to even; what is no output or input is zero.
    """
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, -rows % GROUP), (0, columns % 2)))
    rounded = (round_bfloat16(padded).view(np.uint32) >> 16).astype(np.uint16)
    return np.ascontiguousarray(rounded.reshape(-1, GROUP, rounded.shape[1] // 2, 2).transpose(0, 2, 1, 3))


def unpack_bfloat16_t16(packed: npt.NDArray[np.uint16]) -> F32:
    """[groups, pairs of inputs, 16, 2] as [out, in], filled up with zeros to whole groups and pairs."""
    bits = packed.transpose(0, 2, 1, 3).reshape(GROUP * len(packed), -1).astype(np.uint32) << 16
    return bits.view(np.float32)


def quantize_nf4_t16(weight: F32, block: int) -> tuple[Bytes, F32]:
    """The nearest values of NF4 in layout t16; every row begins a block.

    Args:
        weight: [out, in].
        block: inputs that share a scale.

    Returns:
        packed [ceil(out / 16), 32s of inputs, 4, 64] and scales [ceil(out / 16), blocks, 16].
    """
    rows, columns = weight.shape
    whole = np.pad(weight, ((0, 0), (0, -columns % block)))
    packed, scales = quantize_nf4(whole, block)
    return pack_nf4_t16(unpack_nibbles(packed, "high").reshape(rows, -1), scales.reshape(rows, -1))


def pack_nf4_t16(indices: Bytes, scales: F32) -> tuple[Bytes, F32]:
    """Indices [out, in] into NF4, whole blocks, and scales [out, blocks] as `quantize_nf4_t16` gives them."""
    return _pack_t16(indices, 4, _NF4_ZERO), _pack_scales(scales)


def unpack_nf4_t16(packed: Bytes) -> F32:
    """The values of NF4 [out, in], not yet scaled, filled up with zeros to whole groups and blocks."""
    values: F32 = NF4[unpack_t16(packed) + 8]
    return values


def dequantize_nf4_t16(packed: Bytes, scales: F32) -> F32:
    """What the indices stand for: [out, in], filled up with zeros to whole groups and blocks.

    Args:
        packed: [groups, 32s of inputs, 4, 64].
        scales: [groups, blocks, 16].
    """
    return _scaled(unpack_nf4_t16(packed), scales)


def unpack_t16(packed: Bytes) -> npt.NDArray[np.int16]:
    """The integers of a t16 matrix, zero in the middle: [out, in], filled up to whole groups and blocks.

    Args:
        packed: [groups, 32s of inputs, bits, 64].
    """
    groups, _, bits, _ = packed.shape
    _check_bits(bits)
    lines = packed if bits == 8 else np.concatenate([packed & 15, packed >> 4], axis=2)
    values = lines.reshape(groups, -1, LINES, GROUP, 4).transpose(0, 3, 1, 2, 4).reshape(groups * GROUP, -1)
    return values.astype(np.int16) - np.int16(2 ** (bits - 1))


def dequantize_t16(packed: Bytes, scales: F16) -> F32:
    """What the numbers stand for: [out, in], filled up with zeros to whole groups and blocks.

    Args:
        packed: [groups, 32s of inputs, bits, 64].
        scales: [groups, blocks, 16].
    """
    return _scaled(unpack_t16(packed).astype(np.float32), scales.astype(np.float32))


def dequantize_super_t16(packed: Bytes, multiples: npt.NDArray[np.int8], scales: F16) -> F32:
    """What the numbers of `quantize_super_t16` stand for: [out, in], filled up with zeros."""
    values = multiply_t16(packed, multiples).astype(np.float32)
    missing = -values.shape[1] % SUPER_BLOCK
    whole = np.pad(values, ((0, 0), (0, missing)))
    return _scaled(whole, scales.astype(np.float32))[:, : values.shape[1]]


def multiply_t16(packed: Bytes, multiples: npt.NDArray[np.int8]) -> npt.NDArray[np.int16]:
    """The signed bytes that values times multiples are: [out, in], filled up to whole groups and blocks.

    Args:
        packed: [groups, 32s of inputs, 4, 64].
        multiples: [groups, blocks, 16].
    """
    values = unpack_t16(packed)
    rows = multiples.transpose(0, 2, 1).reshape(len(values), -1).astype(np.int16)  # [out, blocks]
    return values * np.repeat(rows, values.shape[1] // rows.shape[1], axis=1)


def _scaled(values: F32, scales: F32) -> F32:
    """[out, in] times the scales [groups, blocks, 16] of their blocks."""
    rows = scales.transpose(0, 2, 1).reshape(len(values), -1)  # [out, blocks]
    weight: F32 = values * np.repeat(rows, values.shape[1] // rows.shape[1], axis=1)
    return weight


def dequantize_blocks(packed: Bytes, scales: F32, bits: int) -> F32:
    """What the stored numbers stand for: [out, blocks * block], the zeros behind a row included.

    Args:
        packed: [out, blocks, block * bits / 8].
        scales: [out, blocks].
        bits: 4 or 8.

    Raises:
        ValueError: other bits, or scales of another shape.
    """
    _check_bits(bits)
    if scales.shape != packed.shape[:2]:
        raise ValueError(f"scales are {scales.shape}; the blocks are {packed.shape[:2]}")
    values = packed if bits == 8 else unpack_nibbles(packed, "low")
    centred = values.astype(np.float32) - 2 ** (bits - 1)
    weight: F32 = (centred * scales[..., None]).reshape(len(packed), -1)
    return weight


SUPER_BLOCK: Literal[128] = 128  # neighbouring inputs that share a scale where blocks have multiples of it
LARGEST_MULTIPLE = 16  # -8 of it is the least signed byte
SMALLEST_MULTIPLE = -15  # of a block whose largest value has the other sign


def quantize_super_blocks(weight: F32, block: int) -> tuple[Bytes, F32]:
    """int4 whose blocks have whole multiples of the scale of their super-block; see `quantize_super_t16`.

    Args:
        weight: [out, in].
        block: values that share a multiple.

    Returns:
        packed [out, blocks, block / 2] and scales [out, blocks], as `quantize_blocks` gives them.

    Raises:
        ValueError: other block sizes than BLOCK_SIZES, or values too large for 16-bit scales.
    """
    values, multiples, scales = _quantize_super_blocks(weight, block)
    steps = scales.astype(np.float32).repeat(SUPER_BLOCK // block, axis=1)[:, : multiples.shape[1]]
    return pack_nibbles(values, "low"), multiples * steps  # exact: 5 bits by 11


def _quantize_super_blocks(weight: F32, block: int) -> tuple[Bytes, npt.NDArray[np.int8], F16]:
    """Values [out, blocks, block], one a byte, multiples [out, blocks], scales [out, super-blocks]."""
    _check_block(block)
    rows, columns = weight.shape
    whole = np.pad(weight, ((0, 0), (0, -columns % SUPER_BLOCK)))
    blocks = whole.reshape(rows, -1, SUPER_BLOCK // block, block)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=3)[..., None], axis=3)[..., 0]
    top = np.take_along_axis(largest, np.abs(largest).argmax(axis=2)[..., None], axis=2)  # of each super-block
    with np.errstate(over="ignore"):
        scales = (top / np.float32(-8 * LARGEST_MULTIPLE)).astype(np.float16)
    _check_scales(scales, weight, 8 * LARGEST_MULTIPLE)
    exact = _over(largest / np.float32(-8), scales.astype(np.float32))
    multiples = np.clip(np.rint(exact), SMALLEST_MULTIPLE, LARGEST_MULTIPLE)  # rounded before the values are
    steps = multiples * scales.astype(np.float32)
    quantized = np.clip(np.rint(_over(blocks, steps[..., None])) + 8, 0, 15).astype(np.uint8)
    there = slice(-(-columns // block))  # the last super-block has no more blocks than there are
    values = quantized.reshape(rows, -1, block)[:, there]
    return values, multiples.astype(np.int8).reshape(rows, -1)[:, there], scales[..., 0]


def _over(values: F32, scales: F32) -> F32:
    """Values over their scales; zero where these are."""
    inverse: F32 = np.divide(np.float32(1), scales, out=np.zeros_like(scales, np.float32), where=scales != 0)
    return values * inverse


def _check_block(block: int) -> None:
    if block not in BLOCK_SIZES:
        raise ValueError(f"blocks of {block} values; expected one of {BLOCK_SIZES}")


def _check_scales(scales: F16, weight: F32, steps: int) -> None:
    if not np.isfinite(scales).all():
        raise ValueError(f"weights of up to {np.abs(weight).max():g}; scales of 16 bits reach to {steps * 65504}")


def _check_bits(bits: int) -> None:
    if bits not in BLOCK_BITS:
        raise ValueError(f"blocks of {bits} bits; expected one of {BLOCK_BITS}")


def quantize_nf4(values: F32, block: int) -> tuple[Bytes, F32]:
    """The nearest values of NF4, bit for bit as bitsandbytes chooses them on a CPU.

    Args:
        values: of any shape; they are flattened.
        block: values that share a scale, their largest magnitude.

    Returns:
        packed [size / 2] and scales [size / block].

    Raises:
        ValueError: the values are not whole blocks.
    """
    if block < 2 or block % 2 or values.size % block:
        raise ValueError(f"{values.size} values in blocks of {block}; expected whole blocks of an even size")
    blocks = values.reshape(-1, block)
    scales = np.abs(blocks).max(axis=1)  # [blocks]
    inverse = np.float32(1) / np.maximum(scales, np.float32(1e-38))  # a block of zeros stays one
    scaled = np.clip(blocks * inverse[:, None], -1, 1)
    midpoints = (NF4[:-1] + NF4[1:]) / 2
    indices = np.searchsorted(midpoints, scaled.ravel()).astype(np.uint8)
    return pack_nibbles(indices, "high"), scales


def dequantize_table(packed: Bytes, table: F32, scales: F32, block: int, count: int) -> F32:
    """The first `count` values of a flattened matrix: of the table, times their block's scale.

    Args:
        packed: [(count + 1) // 2].
        table: [16], as NF4.
        scales: one for each block, the last of which may be cut.
        block: values that share a scale.
        count: values there are.

    Raises:
        ValueError: values or scales are missing or left over.
        IndexError: the table has fewer values than are asked for.
    """
    values: F32 = table[unpack_nibbles(packed, "high")][:count]
    blocks = -(-count // block)
    if (len(values), len(scales)) != (count, blocks):
        raise ValueError(f"{len(values)} values and {len(scales)} scales; expected {count} and {blocks}")
    values *= np.repeat(scales, block)[:count]
    return values


def dequantize_scales(indices: Bytes, table: F32, outer: F32, block: int, offset: float) -> F32:
    """Scales that are quantized in turn: double quantization (QLoRA, section 3).

    Args:
        indices: [blocks], into the table.
        table: [256].
        outer: one scale for each `block` of them.
        block: indices that share an outer scale.
        offset: added to all.
    """
    scaled: F32 = table[indices] * np.repeat(outer, block)[: len(indices)]
    return scaled + np.float32(offset)
