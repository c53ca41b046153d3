"""int4 whose blocks have multiples of a scale that 128 inputs share: near what it was, the same for every decoder."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salmonrun.kernels.formats import (
    BLOCK_SIZES,
    F32,
    LARGEST_MULTIPLE,
    SMALLEST_MULTIPLE,
    SUPER_BLOCK,
    dequantize_blocks,
    dequantize_super_t16,
    multiply_t16,
    quantize_blocks,
    quantize_super_blocks,
    quantize_super_t16,
)

SHAPES = [(1, 1), (20, 128), (7, 40), (33, 100), (5, 129), (16, 300), (3, 384)]  # [out, in]
every_block = pytest.mark.parametrize("block", BLOCK_SIZES)


def weights(out: int, size: int, seed: int = 0) -> F32:
    """Normal, with an outlier per row, rows of very different size and blocks of zeros."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 1, (out, size)) * 10.0 ** rng.uniform(-3, 1, (out, 1))
    weight[np.arange(out), rng.integers(0, size, out)] *= -6
    weight[:, 32:64] *= rng.integers(0, 2, (out, 1))
    return weight.astype(np.float32)


def as_described(row: F32, block: int) -> list[float]:
    """The values of one row, one after the other."""
    out: list[float] = []
    for start in range(0, len(row), SUPER_BLOCK):
        whole = row[start : start + SUPER_BLOCK]
        top = max(whole, key=abs)
        scale = np.float32(np.float16(top / np.float32(-8 * LARGEST_MULTIPLE)))
        for first in range(0, len(whole), block):
            values = whole[first : first + block]
            wanted = np.float32(max(values, key=abs) / np.float32(-8)) / scale if scale else np.float32(0)
            multiple = min(max(round(float(wanted)), SMALLEST_MULTIPLE), LARGEST_MULTIPLE)
            step = np.float32(multiple) * scale
            steps = [min(max(round(float(value / step)), -8), 7) if step else 0 for value in values]
            out += [float(np.float32(count) * step) for count in steps]
    return out


@every_block
@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_is_what_is_described(shape: tuple[int, int], block: int) -> None:
    weight = weights(*shape)
    found = dequantize_super_t16(*quantize_super_t16(weight, block))[: shape[0], : shape[1]]
    # A quotient of which one is a product with an inverse may round the other way where it lies between two steps.
    off = np.abs(found - np.array([as_described(row, block) for row in weight], np.float32))
    assert (off > 0).mean() < 0.002


@every_block
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_within_half_a_step(shape: tuple[int, int], block: int) -> None:
    """Or cut: at the end of the range, which a multiple may be half a scale short of."""
    weight = weights(*shape)
    packed, multiples, scales = quantize_super_t16(weight, block)
    found = dequantize_super_t16(packed, multiples, scales)[: shape[0], : shape[1]]
    rows = slice(shape[0]), slice(shape[1])
    scale = np.repeat(scales.transpose(0, 2, 1).reshape(-1, scales.shape[1]), SUPER_BLOCK, axis=1).astype(np.float32)
    multiple = np.repeat(multiples.transpose(0, 2, 1).reshape(-1, multiples.shape[1]), block, axis=1)
    step = (multiple * scale[:, : multiple.shape[1]])[rows]
    least, rounding = np.abs(scale[rows]), 2.0**-24 * 128  # below 2 ** -14 a scale of 16 bits is subnormal
    cut = (weight * np.sign(step) > 7 * np.abs(step)) | (weight * np.sign(step) < -8 * np.abs(step))
    allowed = np.where(cut, np.abs(step) + 8.1 * least, 0.5 * np.abs(step)) + rounding
    assert np.all(np.abs(weight - found) <= allowed * (1 + 1e-5))


@every_block
def test_the_error_is_hardly_that_of_blocks_with_scales_of_their_own(block: int) -> None:
    weight = np.random.default_rng(0).standard_t(5, (64, 1024)).astype(np.float32)
    own, plain = (
        float(np.square(dequantize_blocks(*pair, 4) - weight).mean())
        for pair in (quantize_super_blocks(weight, block), quantize_blocks(weight, 4, block))
    )
    assert own < 1.02 * plain


@given(
    rows=st.integers(1, 20), columns=st.integers(1, 300), block=st.sampled_from(BLOCK_SIZES), seed=st.integers(0, 99)
)
def test_all_decoders_have_the_same_values_and_find_them_again(rows: int, columns: int, block: int, seed: int) -> None:
    weight = weights(rows, columns + 64, seed)
    packed, multiples, scales = quantize_super_t16(weight, block)
    found = dequantize_super_t16(packed, multiples, scales)[:rows, : columns + 64]
    graph = dequantize_blocks(*quantize_super_blocks(weight, block), 4)[:, : columns + 64]
    np.testing.assert_array_equal(graph, found)
    whole = multiply_t16(packed, multiples)
    assert -128 <= whole.min() <= whole.max() <= 127  # a signed byte


def test_scales_that_16_bits_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights of up to 1e\+07; scales of 16 bits reach to 8384512"):
        quantize_super_t16(np.full((1, 32), 1e7, np.float32), 32)
    with pytest.raises(ValueError, match="blocks of 16 values"):
        quantize_super_blocks(np.ones((1, 32), np.float32), 16)
