"""What encoders need of an instruction set beside the LLM's operations: equal to the specification to the bit."""

from typing import Any

import numpy as np
import pytest

from salmonrun.kernels import encoder_reference as reference
from salmonrun.kernels.formats import F32
from salmonrun.kernels.reference import FloatLinear
from tests.helpers.native_encoders import (
    NativeEncoder,
    Shape,
    native_norm,
    random_encoder,
    random_floats,
    same_bits,
)
from tests.helpers.native_llms import native_matrix

native: Any = pytest.importorskip("salmonrun.kernels.cpu._native")


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> F32:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def encoder_of(instruction_set: str, threads: int = 2) -> Any:
    """One whose own operations are asked for."""
    return NativeEncoder(random_encoder(Shape(layers=1)), instruction_set, threads).native


# Rows


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 24, 80, 1280])
def test_layer_norm(instruction_set: str, size: int) -> None:
    norm = reference.LayerNorm(normal(size, seed=1), normal(size, seed=2), 1e-5)
    for seed, scale, mean in ((0, 1, 0), (3, 1e-3, 100), (4, 1e4, -3)):
        x = normal(size, seed=seed, scale=scale) + np.float32(mean)
        found = x.copy()
        native.Operations.of(instruction_set).layer_norm(found, norm.weight, norm.bias, norm.eps)
        same_bits(found, norm(x))


@pytest.mark.parametrize("threads", [1, 3])
def test_layer_norms_of_many_rows(instruction_set: str, threads: int) -> None:
    norm = reference.LayerNorm(normal(37, seed=1), normal(37, seed=2), 1e-6)
    encoder = encoder_of(instruction_set, threads)
    for rows in (1, 2, 100):
        x = normal(rows, 37, scale=5)
        found = x.copy()
        encoder.normalize(native_norm(norm), found)
        same_bits(found, norm(x))
    encoder.normalize(native_norm(norm), found[:0])
    with pytest.raises(ValueError, match="x behind its last row: 1 values, expected 0"):
        encoder.normalize(native_norm(norm), normal(38))


GELU_EDGES = np.array(
    [0, -0.0, 1e-40, -1e-40, 13, -13, 14, -14, 30, -30, 1e18, -1e18, 1e30, -1e30, 3e38, -3e38], np.float32
)


def test_gelu(instruction_set: str) -> None:
    x = np.concatenate([np.linspace(-15, 15, 160_000, dtype=np.float32), GELU_EDGES, normal(1024)])
    found = x.copy()
    native.Operations.of(instruction_set).gelu(found)
    with np.errstate(over="ignore"):
        same_bits(found, reference.gelu(x))


@pytest.mark.parametrize("threads", [1, 3])
def test_gelu_of_any_size(instruction_set: str, threads: int) -> None:
    for size in (0, 1, 15, 17, 4095, 4096, 4097, 8193):
        x = normal(size, scale=2)
        found = x.copy()
        encoder_of(instruction_set, threads).gelu(found)
        same_bits(found, reference.gelu(x))


@pytest.mark.parametrize("count", [1, 5, 15, 16, 17, 48, 63, 64, 65, 100])
def test_attention_weights_as_bytes(instruction_set: str, count: int) -> None:
    whole, padded = -(-count // 16) * 16, -(-count // 64) * 64
    flat, steep = normal(count, seed=count), normal(count, seed=count, scale=30)
    scales = np.abs(normal(count, seed=1))
    cases = (
        (flat, scales),
        (steep, scales),
        (flat, np.zeros_like(scales)),
        (flat, np.full_like(scales, 1e-31)),  # so little that it counts as zero
        (flat, np.full_like(scales, 1e-44)),
        (steep, scales * np.float32(1e30)),
        (np.full_like(flat, -1e30), scales),
    )
    for scores, value_scales in cases:
        # What lies behind the last score does not matter: the scores of a recording that was there before.
        asked = np.pad(scores, (0, whole - count), constant_values=1e30)
        out = np.zeros(padded, np.int8)
        given = np.pad(value_scales, (0, whole - count))
        scale, total = native.Operations.of(instruction_set).weigh(asked, count, given, out)
        values, steps = reference.weigh(scores, value_scales)
        np.testing.assert_array_equal(out, np.pad(values, (0, padded - count), constant_values=-127))
        same_bits(np.float32(scale), steps)
        assert total == out.sum(dtype=np.int64)


# Products of floats


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 12, 16, 33])
def test_products_of_floats(instruction_set: str, rows: int) -> None:
    for out, columns in ((70, 100), (37, 300), (16, 40), (64, 16), (1, 1), (15, 17)):
        matrix = random_floats(np.random.default_rng(rows), out, columns, bias=True)
        x = normal(rows, columns, seed=rows) * 10.0 ** np.arange(rows, dtype=np.float32)[:, None] ** 0.5
        found = np.empty((rows, out), np.float32)
        native.Operations.of(instruction_set).product(native_matrix(matrix), x, found)
        same_bits(found, matrix(x))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("gelu", [False, True])
def test_products_of_rows_that_overlap(instruction_set: str, gelu: bool, threads: int) -> None:
    """A convolution of 3 steps over time, by one and by two; with rows apart, backwards, and all the same one."""
    encoder = encoder_of(instruction_set, threads)
    matrix = random_floats(np.random.default_rng(0), 37, 21, bias=True)
    for frames in (3, 4, 243, 500):  # more than a slice
        x = normal(frames, 7, seed=frames)
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 7))[:, 0].reshape(-1, 21)
        overlapping = np.lib.stride_tricks.as_strided(x, windows.shape, x.strides)
        same_bits(overlapping, windows)
        for rows in (overlapping, overlapping[::2], overlapping[::-1], np.broadcast_to(windows[:1], windows.shape)):
            found = np.empty((len(rows), 37), np.float32)
            encoder.product(native_matrix(matrix), rows, found, gelu)
            expected = matrix(np.ascontiguousarray(rows))
            same_bits(found, reference.gelu(expected) if gelu else expected)


def test_a_product_with_one_input(instruction_set: str) -> None:
    """Then rows may lie apart, whatever the stride of what is in them."""
    matrix = random_floats(np.random.default_rng(0), 5, 1, bias=False)
    x, found = normal(9, 4), np.empty((9, 5), np.float32)
    encoder_of(instruction_set).product(native_matrix(matrix), x[:, 2:3], found)
    same_bits(found, matrix(x[:, 2:3]))


def test_products_that_do_not_fit_are_refused() -> None:
    encoder = encoder_of("portable")
    matrix = random_floats(np.random.default_rng(0), 5, 8, bias=True)
    x, out = normal(3, 8), normal(3, 5)
    before = out.copy()
    integers, brain_floats = (random_encoder(Shape(layers=1, bfloat16=one)).layers[0].v for one in (False, True))
    refusals: list[tuple[Any, F32, F32, str]] = [
        (matrix, normal(3, 7), out, "x has 7 columns, expected 8"),
        (matrix, normal(8, 3).T, out, "the rows of x: expected contiguous values"),
        (matrix, normal(2, 8), out, "out: 15 values, expected 10"),
        (brain_floats, normal(3, 72), normal(3, 72), "a matrix that takes quantized inputs"),
        (integers, normal(3, 72), normal(3, 72), "a matrix that takes quantized inputs; these products are of floats"),
    ]
    for product, rows, to, message in refusals:
        with pytest.raises(ValueError, match=message):
            encoder.product(native_matrix(product), rows, to)
    for wrong in (x.astype(np.float64), x[0]):
        with pytest.raises(TypeError):
            encoder.product(native_matrix(matrix), wrong, out)
    with pytest.raises(TypeError):
        encoder.product(native_matrix(matrix), x, normal(3, 10)[:, ::2])
    same_bits(out, before)
    encoder.product(native_matrix(matrix), x[:0], out[:0])


def test_matrices_of_floats_that_do_not_fit_are_refused() -> None:
    packed = np.zeros((2, 7, 16), np.float32)
    native.Matrix.floats(packed, 17, 7)
    refusals = (
        ((33, 7), "packed weights: 896 values, expected 1344"),
        ((17, 8), "packed weights: 896 values, expected 1024"),
        ((0, 7), "a matrix of 0 x 7"),
        ((17, -1), "a matrix of 17 x -1"),
        ((17, 2**31 - 1), "a matrix of 17 x 2147483647"),
    )
    for sizes, message in refusals:
        with pytest.raises(ValueError, match=message):
            native.Matrix.floats(packed, *sizes)
    with pytest.raises(ValueError, match="bias of 16 values, expected 17"):
        native.Matrix.floats(packed, 17, 7, np.zeros(16, np.float32))
    for wrong in (packed.astype(np.float64), packed[:, ::2]):
        with pytest.raises(TypeError):
            native.Matrix.floats(wrong, 17, 7)


# What is no number


def test_what_is_no_number_does_no_harm(instruction_set: str) -> None:
    """Nothing is said of what comes out, but that it comes out: no byte is made of such a number by conversion."""
    operations, encoder = native.Operations.of(instruction_set), encoder_of(instruction_set)
    matrix = random_floats(np.random.default_rng(0), 5, 32, bias=True)
    ones = np.ones(32, np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        for places in ([0], [17], slice(None)):
            x = normal(32)
            x[places] = bad
            for call in (operations.gelu, encoder.gelu):
                call(x.copy())
            operations.layer_norm(x.copy(), ones, ones, 1e-5)
            operations.product(native_matrix(matrix), x, np.empty(5, np.float32))
            out = np.zeros(64, np.int8)
            for scores, scales in ((x, ones), (normal(32), x), (x, x)):
                _, total = operations.weigh(scores.copy(), 30, scales, out)
                assert total == out.sum(dtype=np.int64)
                assert out.min() >= -127


def test_a_value_on_each_side_of_a_convolution_is_its_own(instruction_set: str) -> None:
    """Rows that overlap are read and never written."""
    x = normal(50, 7)
    before = x.copy()
    rows = np.lib.stride_tricks.as_strided(x, (48, 21), x.strides)
    matrix: FloatLinear = random_floats(np.random.default_rng(0), 3, 21, bias=False)
    encoder_of(instruction_set).product(native_matrix(matrix), rows, np.empty((48, 3), np.float32), True)
    same_bits(x, before)
