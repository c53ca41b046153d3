"""Weight formats: what goes in comes out within half a step, as ONNX Runtime and bitsandbytes compute it."""

from typing import Any

import gguf
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from salmonrun.kernels.formats import (
    BLOCK_SIZES,
    FP4,
    NF4,
    Bytes,
    dequantize_blocks,
    dequantize_nf4_t16,
    dequantize_scales,
    dequantize_t16,
    dequantize_table,
    pack_floats_t16,
    pack_nf4_t16,
    pack_nibbles,
    quantize_blocks,
    quantize_nf4,
    quantize_nf4_t16,
    quantize_t16,
    unpack_floats_t16,
    unpack_nibbles,
    unpack_t16,
)
from salmonrun.runtime.arrays import F32

SHAPES = [(1, 32), (8, 64), (7, 40), (33, 100), (5, 31), (64, 33), (6, 384)]  # [out, in]: blocks that are not full, too
every_block = pytest.mark.parametrize("block", BLOCK_SIZES)
bits_4_and_8 = pytest.mark.parametrize("bits", [4, 8])


def weights(out: int, size: int, seed: int = 0) -> F32:
    """Normal, with an outlier per row and rows of very different size."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 1, (out, size)) * 10.0 ** rng.uniform(-3, 1, (out, 1))
    weight[np.arange(out), rng.integers(0, size, out)] *= -6
    return weight.astype(np.float32)


# Nibbles


@pytest.mark.parametrize("shape", [(2,), (3, 8), (2, 5, 32), (4, 0)])
def test_nibbles_come_back(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 16, shape).astype(np.uint8)
    for first in ("low", "high"):
        packed = pack_nibbles(values, first)
        assert packed.shape == (*shape[:-1], shape[-1] // 2)
        np.testing.assert_array_equal(unpack_nibbles(packed, first), values)


def test_the_first_nibble_lies_where_it_was_asked_for() -> None:
    values = np.array([1, 2, 15, 0], np.uint8)
    assert pack_nibbles(values, "low").tolist() == [0x21, 0x0F]
    assert pack_nibbles(values, "high").tolist() == [0x12, 0xF0]


# Blocks of int4 and int8


@bits_4_and_8
@every_block
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_within_half_a_step(shape: tuple[int, int], block: int, bits: int) -> None:
    """But for values near the far end of a block, which has one step less: those may be a whole step off."""
    weight = weights(*shape)
    packed, scales = quantize_blocks(weight, bits, block)
    blocks = -(-shape[1] // block)
    assert (packed.dtype, packed.shape) == (np.dtype(np.uint8), (shape[0], blocks, block * bits // 8))
    assert (scales.dtype, scales.shape) == (np.dtype(np.float32), (shape[0], blocks))
    restored = dequantize_blocks(packed, scales, bits)
    assert (restored.dtype, restored.shape) == (np.dtype(np.float32), (shape[0], blocks * block))
    np.testing.assert_array_equal(restored[:, shape[1] :], 0)
    step = np.repeat(np.abs(scales), block, axis=1)[:, : shape[1]]
    sign = np.repeat(np.sign(scales), block, axis=1)[:, : shape[1]]
    clipped = weight * sign > (2 ** (bits - 1) - 1) * step
    error = np.abs(weight - restored[:, : shape[1]])
    assert np.all(error <= np.where(clipped, 1.0, 0.5) * step * (1 + 1e-5))


@bits_4_and_8
@every_block
def test_the_largest_value_of_a_block_is_kept(block: int, bits: int) -> None:
    weight = weights(6, 4 * block)
    restored = dequantize_blocks(*quantize_blocks(weight, bits, block), bits)
    largest = np.abs(weight.reshape(6, 4, block)).argmax(axis=2)[..., None]
    found, expected = (np.take_along_axis(w.reshape(6, 4, block), largest, axis=2) for w in (restored, weight))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@bits_4_and_8
@every_block
def test_numbers_on_the_grid_are_kept(block: int, bits: int) -> None:
    half = 2 ** (bits - 1)
    grid = np.random.default_rng(0).integers(-half, half, (5, 3 * block)).astype(np.float32)
    grid[:, ::block] = -half  # the end with one step more
    grid /= 16
    np.testing.assert_array_equal(dequantize_blocks(*quantize_blocks(grid, bits, block), bits), grid)


def test_four_bits_are_packed_low_nibble_first() -> None:
    row = np.zeros((1, 32), np.float32)
    row[0, :4] = [-8, 7, 1, -2]
    packed, scales = quantize_blocks(row, 4, 32)
    assert scales.tolist() == [[1.0]]
    assert packed[0, 0, :3].tolist() == [0xF0, 0x69, 0x88]


@bits_4_and_8
@every_block
@pytest.mark.parametrize("shape", SHAPES)
def test_onnxruntime_reads_the_same_numbers(shape: tuple[int, int], block: int, bits: int) -> None:
    """Bit by bit: MatMulNBits times an identity matrix."""
    rows, columns = shape
    packed, scales = quantize_blocks(weights(*shape), bits, block)
    sizes = {"K": columns, "N": rows, "bits": bits, "block_size": block}
    node = helper.make_node("MatMulNBits", ["x", "packed", "scales"], ["y"], domain="com.microsoft", **sizes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [columns, columns])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [columns, rows])
    constants = [numpy_helper.from_array(packed, "packed"), numpy_helper.from_array(scales, "scales")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", [x], [y], constants), ir_version=10, opset_imports=opsets)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": np.eye(columns, dtype=np.float32)})
    np.testing.assert_array_equal(found.T, dequantize_blocks(packed, scales, bits)[:, :columns])


@bits_4_and_8
@every_block
@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_of_onnx_reads_the_same_numbers(shape: tuple[int, int], block: int, bits: int) -> None:
    """Bit by bit: what DequantizeLinear says of blocks, by ONNX's own evaluator."""
    packed, scales = quantize_blocks(weights(*shape), bits, block)
    values = (unpack_nibbles(packed, "low") if bits == 4 else packed).reshape(len(packed), -1)
    kind = TensorProto.UINT4 if bits == 4 else TensorProto.UINT8
    zeros = np.full(scales.shape, 2 ** (bits - 1), np.uint8)
    constants = [
        helper.make_tensor("values", kind, values.shape, values.ravel()),
        helper.make_tensor("zeros", kind, zeros.shape, zeros.ravel()),
        numpy_helper.from_array(scales, "scales"),
    ]
    node = helper.make_node("DequantizeLinear", ["values", "scales", "zeros"], ["y"], axis=1, block_size=block)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, values.shape)
    model = helper.make_model(
        helper.make_graph([node], "g", [], [y], constants), opset_imports=[helper.make_opsetid("", 21)]
    )
    (found,) = ReferenceEvaluator(model).run(None, {})
    np.testing.assert_array_equal(found[:, : shape[1]], dequantize_blocks(packed, scales, bits)[:, : shape[1]])


@pytest.mark.parametrize("shape", [(33, 128), (64, 32), (1, 2048)])
def test_blocks_of_32_are_those_of_llama_cpp(shape: tuple[int, int]) -> None:
    """4 bits: the integers of Q4_0, and its scales once they are rounded to 16 bits. 8 bits: as near as Q8_0."""
    weight = weights(*shape)
    packed, scales = quantize_blocks(weight, 4, 32)
    theirs = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0).reshape(*scales.shape, 18)
    low, high = theirs[..., 2:] & 15, theirs[..., 2:] >> 4
    np.testing.assert_array_equal(unpack_nibbles(packed, "low"), np.concatenate([low, high], axis=-1))
    np.testing.assert_array_equal(scales.astype(np.float16), theirs[..., :2].copy().view(np.float16)[..., 0])
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    near = gguf.quants.dequantize(gguf.quants.quantize(weight, q8_0), q8_0).reshape(shape)
    ours = dequantize_blocks(*quantize_blocks(weight, 8, 32), 8)
    assert np.linalg.norm(ours - weight) <= 1.01 * np.linalg.norm(near - weight)


def test_other_bits_and_blocks_are_refused() -> None:
    weight = weights(2, 64)
    with pytest.raises(ValueError, match=r"blocks of 3 bits; expected one of \(4, 8\)"):
        quantize_blocks(weight, 3, 32)
    with pytest.raises(ValueError, match=r"blocks of 16 values; expected one of \(32, 64, 128\)"):
        quantize_blocks(weight, 4, 16)
    packed, scales = quantize_blocks(weight, 4, 32)
    with pytest.raises(ValueError, match="blocks of 5 bits"):
        dequantize_blocks(packed, scales, 5)
    with pytest.raises(ValueError, match=r"scales are \(2, 1\); the blocks are \(2, 2\)"):
        dequantize_blocks(packed, scales[:, :1], 4)


# The layout t16


@bits_4_and_8
def test_t16_lies_as_its_specification_says(bits: int) -> None:
    """Every value by itself: output and input find their byte, and their half of it."""
    grid = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (20, 70)).astype(np.float32)
    grid[:, ::32] = -(2 ** (bits - 1))
    packed, scales = quantize_t16(grid, bits, 32)
    assert (packed.dtype, packed.shape) == (np.dtype(np.uint8), (2, 3, bits, 64))
    assert (scales.dtype, scales.shape) == (np.dtype(np.float16), (2, 3, 16))
    for out in range(20):
        for column in range(70):
            line, place = column % 32 // 4, 4 * (out % 16) + column % 4
            byte = packed[out // 16, column // 32, line if bits == 8 else line % 4, place]
            value = byte if bits == 8 else byte >> 4 if line >= 4 else byte & 15
            assert value == grid[out, column] + 2 ** (bits - 1), (out, column)
            assert scales[out // 16, column // 32, out % 16] == 1
    np.testing.assert_array_equal(unpack_t16(packed)[20:], 0)
    np.testing.assert_array_equal(unpack_t16(packed)[:, 70:], 0)


@bits_4_and_8
@every_block
@pytest.mark.parametrize("shape", SHAPES)
def test_t16_is_as_near_as_blocks(shape: tuple[int, int], block: int, bits: int) -> None:
    """Its scales are rounded, but before the values are: half a step, and a little where a block is clipped."""
    weight = weights(*shape)
    packed, scales = quantize_t16(weight, bits, block)
    found = dequantize_t16(packed, scales)[: shape[0], : shape[1]]
    step = np.repeat(scales.transpose(0, 2, 1).reshape(-1, scales.shape[1]), block, axis=1)[: shape[0], : shape[1]]
    step = step.astype(np.float32)
    clipped = weight * np.sign(step) > (2 ** (bits - 1) - 1) * np.abs(step)
    rounding = np.maximum(2.0**-11 * np.abs(step), 2.0**-25)  # of a scale: below 2 ** -14, float16 is subnormal
    allowed = np.where(clipped, 1.0, 0.5) * np.abs(step) + 2 ** (bits - 1) * rounding
    assert np.all(np.abs(weight - found) <= allowed * (1 + 1e-5))
    exact = dequantize_blocks(*quantize_blocks(weight, bits, block), bits)[:, : shape[1]]
    errors = [float(np.square(weight - one).mean()) for one in (found, exact)]
    assert errors[0] <= errors[1] * 1.02


def test_floats_in_t16_are_kept() -> None:
    grid = np.arange(20 * 7, dtype=np.float32).reshape(20, 7)
    packed = pack_floats_t16(grid)
    assert (packed.dtype, packed.shape) == (np.dtype(np.float32), (2, 7, 16))
    assert packed.flags.c_contiguous
    assert packed[0, 3].tolist() == grid[:16, 3].tolist()
    assert packed[1, 3].tolist() == [*grid[16:, 3], *[0.0] * 12]
    np.testing.assert_array_equal(unpack_floats_t16(packed)[:20], grid)
    np.testing.assert_array_equal(unpack_floats_t16(packed)[20:], 0)


def test_t16_refuses_what_its_scales_cannot_hold() -> None:
    weight = np.full((1, 32), 1e6, np.float32)
    with pytest.raises(ValueError, match=r"weights of up to 1e\+06; scales of 16 bits reach to 524032"):
        quantize_t16(weight, 4, 32)
    quantize_t16(weight, 8, 32)


# Tables of 16 values. bitsandbytes is an extra.


def four_bit(values: F32, kind: str, block: int, nested: bool = False) -> tuple[Bytes, Any, Any]:
    """As bitsandbytes packs it on a CPU: bytes, scales as it stores them, its state."""
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        torch.from_numpy(values), blocksize=block, quant_type=kind, compress_statistics=nested
    )
    return packed.numpy().ravel(), state.absmax.numpy(), state


def test_the_tables_are_those_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    for table, kind in ((NF4, "nf4"), (FP4, "fp4")):
        np.testing.assert_array_equal(table, functional.get_4bit_type(kind, device="cpu").numpy())
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


@pytest.mark.parametrize("block", [32, 64, 128, 4096])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_nf4_is_what_bitsandbytes_makes_bit_by_bit(block: int, scale: float) -> None:
    values = weights(24, 4096, seed=block) * np.float32(scale)
    values[3, :block] = 0
    values[5] = np.float32(1e-44)  # subnormal
    packed, scales = quantize_nf4(values, block)
    expected, absmax, _ = four_bit(values, "nf4", block)
    assert packed.tobytes() == expected.tobytes()
    assert scales.tobytes() == absmax.tobytes()


def test_nf4_on_and_beside_the_middle_between_two_values() -> None:
    """Where rounding decides: every midpoint of the table, and the floats next to it on either side."""
    middles = (NF4[:-1] + NF4[1:]) / 2
    near = [np.nextafter(middles, np.float32(side)) for side in (-2, 2)]
    row = np.concatenate([middles, *near, np.ones(64 - 45, np.float32)]).astype(np.float32)
    values = np.stack([row * np.float32(factor) for factor in (1, 0.3, 7, 1e-5, 1234.5)])
    packed, scales = quantize_nf4(values, 64)
    expected, absmax, _ = four_bit(values, "nf4", 64)
    assert packed.tobytes() == expected.tobytes()
    assert scales.tobytes() == absmax.tobytes()


def test_values_of_the_table_are_kept() -> None:
    row = np.tile(NF4, 4)
    packed, scales = quantize_nf4(row, 64)
    assert scales.tolist() == [1.0]
    np.testing.assert_array_equal(dequantize_table(packed, NF4, scales, 64, row.size), row)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("nested", [False, True])
def test_tables_are_read_as_bitsandbytes_reads_them(kind: str, block: int, nested: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    values = weights(33, 2 * block)
    packed, stored, state = four_bit(values, kind, block, nested)
    scales = stored
    if nested:
        inner = state.state2
        offset = float(state.offset)
        scales = dequantize_scales(
            stored.view(np.uint8), inner.code.numpy(), inner.absmax.numpy(), inner.blocksize, offset
        )
    found = dequantize_table(packed, {"nf4": NF4, "fp4": FP4}[kind], scales, block, values.size)
    expected = functional.dequantize_4bit(torch.from_numpy(packed)[:, None], state).numpy()
    assert found.tobytes() == expected.tobytes()


def test_a_last_block_that_is_cut() -> None:
    packed = pack_nibbles(np.arange(6, dtype=np.uint8), "high")
    scales = np.array([1, 10], np.float32)
    expected = np.array([*NF4[:4], NF4[4] * 10], np.float32)
    np.testing.assert_array_equal(dequantize_table(packed, NF4, scales, 4, 5), expected)
    with pytest.raises(ValueError, match="6 values and 2 scales; expected 7 and 2"):
        dequantize_table(packed, NF4, scales, 4, 7)
    with pytest.raises(ValueError, match="4 values and 2 scales; expected 4 and 1"):
        dequantize_table(packed, NF4, scales, 4, 4)


@pytest.mark.parametrize(("size", "block"), [(63, 64), (96, 64), (64, 0), (9, 3)])
def test_nf4_of_cut_blocks_is_refused(size: int, block: int) -> None:
    with pytest.raises(ValueError, match=f"{size} values in blocks of {block}; expected whole blocks"):
        quantize_nf4(np.zeros(size, np.float32), block)


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_in_t16_has_the_values_of_bitsandbytes_bit_by_bit(nested: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    values = weights(33, 192)
    if nested:  # codes and scales as they were stored
        packed, stored, state = four_bit(values, "nf4", 64, nested)
        inner, offset = state.state2, float(state.offset)
        tables = (inner.code.numpy(), inner.absmax.numpy(), inner.blocksize, offset)
        scales = dequantize_scales(stored.view(np.uint8), *tables).reshape(33, 3)
        found = dequantize_nf4_t16(*pack_nf4_t16(unpack_nibbles(packed, "high").reshape(33, 192), scales))
    else:
        packed, _, state = four_bit(values, "nf4", 64)
        found = dequantize_nf4_t16(*quantize_nf4_t16(values, 64))
    expected = functional.dequantize_4bit(torch.from_numpy(packed)[:, None], state).numpy()
    assert found[:33].tobytes() == expected.tobytes()
    np.testing.assert_array_equal(found[33:], 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_in_t16_begins_a_block_with_every_row(shape: tuple[int, int]) -> None:
    weight = weights(*shape)
    found = dequantize_nf4_t16(*quantize_nf4_t16(weight, 64))
    for row, expected in zip(found, weight, strict=False):
        whole = np.pad(expected, (0, -shape[1] % 64))
        np.testing.assert_array_equal(row, dequantize_table(*_nf4_row(whole), 64, whole.size))
    np.testing.assert_array_equal(found[:, shape[1] :], 0)


def _nf4_row(row: F32) -> tuple[Bytes, F32, F32]:
    packed, scales = quantize_nf4(row, 64)
    return packed, NF4, scales
