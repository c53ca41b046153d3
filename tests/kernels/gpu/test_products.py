"""Products of few rows, and what is fused with them, against kernels/reference.py."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install 'salmonrun[triton]'")

from salmonrun.kernels import reference
from salmonrun.kernels.formats import quantize_nf4_t16
from salmonrun.kernels.gpu.launch import Launch
from salmonrun.kernels.gpu.matrix import KINDS, Kind, Matrix
from salmonrun.kernels.gpu.norm import add_norm
from salmonrun.kernels.gpu.products import gated_product, normed_product, product, splits_of
from salmonrun.runtime.arrays import F32
from tests.helpers.gpu_matrices import nested, on_device, random_matrix

# Of sums of order one, of inputs and weights that are rounded before: float32 differs by the order of the sum; in half
# precision what is multiplied is rounded to nearest, but to zero by Triton's interpreter in bfloat16 (8 bits).
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def rows_of(count: int, columns: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(size=(count, columns)).astype(np.float32)


def assert_near(found: torch.Tensor, expected: F32, dtype: torch.dtype = torch.float32) -> None:
    np.testing.assert_allclose(found.float().cpu().numpy(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "columns", "count", "block"),
    [(1, 64, 1, 64), (1, 1, 1, 32), (17, 101, 3, 32), (16, 130, 33, 128), (33, 1025, 2, 128)],
)
def test_products(kind: Kind, rows: int, columns: int, count: int, block: int) -> None:
    matrix, weight = random_matrix(kind, rows, columns, block, bias=rows > 1)
    x = rows_of(count, columns)
    expected = reference.dot(x, weight) + (0 if matrix.bias is None else matrix.bias.cpu().numpy())
    assert_near(product(on_device(x), matrix).sum(dim=0), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_in_half_precision(kind: Kind, dtype: torch.dtype) -> None:
    matrix, weight = random_matrix(kind, 40, 300, dtype=dtype, bias=True)
    x = on_device(rows_of(5, 300), dtype)
    assert matrix.bias is not None
    expected = reference.dot(x.float().cpu().numpy(), weight) + matrix.bias.float().cpu().numpy()
    assert_near(product(x, matrix).sum(dim=0), expected, dtype)


def test_nf4_is_that_of_the_native_kernels() -> None:
    """The same weights in the layout of CPUs, by their specification."""
    matrix, _ = random_matrix("nf4", 20, 192)
    rng = np.random.default_rng(20 + 192)  # as `random_matrix` has it
    weight = (rng.normal(size=(20, 192)) / np.sqrt(192)).astype(np.float32)
    x = rows_of(2, 192)
    expected = reference.Nf4Linear(*quantize_nf4_t16(weight, 64), 20, 192)(x)
    assert_near(product(on_device(x), matrix).sum(dim=0), expected)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_nested_scales_are_the_numbers_they_stand_for(kind: Kind) -> None:
    """As bitsandbytes has them with double quantization: a block of 256 goes over the ends of rows."""
    matrix, plain = nested(random_matrix(kind, 70, 640)[0])
    x = on_device(rows_of(1, 640))
    torch.testing.assert_close(product(x, matrix), product(x, plain), atol=1e-6, rtol=0)


def test_inputs_are_split_where_there_are_few_outputs() -> None:
    """By the shape of a matrix alone; the parts are added in their order, so a second time gives the same bits."""
    assert [splits_of(8192, 2048), splits_of(2048, 8192), splits_of(1024, 4096), splits_of(512, 16384)] == [1, 1, 2, 4]
    assert [splits_of(16, 2048), splits_of(16, 1023), splits_of(1, 1)] == [8, 2, 1]
    matrix, weight = random_matrix("int4", 16, 2100)
    x = rows_of(1, 2100)
    found = product(on_device(x), matrix)
    assert found.shape == (8, 1, 16)
    assert_near(found.sum(dim=0), reference.dot(x, weight))
    first = 3 * 128  # of 17 tiles each has three, and the last two splits none
    assert_near(found[0], reference.dot(x[:, :first], weight[:, :first]))
    assert not found[6:].any()
    assert torch.equal(product(on_device(x), matrix), found)


@pytest.mark.parametrize("kind", ["float", "nf4"])
def test_a_row_does_not_depend_on_the_others(kind: Kind) -> None:
    matrix, _ = random_matrix(kind, 33, 520)
    x = on_device(rows_of(16, 520))
    assert torch.equal(product(x, matrix)[:, 3:4], product(x[3:4].contiguous(), matrix))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("count", "columns", "parts"), [(1, 1, 1), (3, 300, 2), (17, 64, 3)])
def test_a_residual_and_its_norm(dtype: torch.dtype, count: int, columns: int, parts: int) -> None:
    """Both outputs of the kernel of its own, and those of the one that is fused with a product."""
    x, norm = on_device(rows_of(count, columns), dtype), on_device(1 + rows_of(1, columns, 1)[0], dtype)
    added = on_device(rows_of(parts * count, columns, 2).reshape(parts, count, columns))
    total = x.float()
    for part in added:
        total = total + part
    expected = total.to(dtype).float().cpu().numpy()
    normed = reference.rms_norm(expected, norm.float().cpu().numpy(), 1e-5)
    summed, found = add_norm(x, added, norm, 1e-5)
    assert summed.dtype == found.dtype == dtype
    assert_near(summed, expected, dtype)
    assert_near(found, normed, dtype)

    matrix, weight = random_matrix("float", 5, columns, dtype=dtype)
    again, projected = normed_product(x, added, norm, 1e-5, matrix)
    assert torch.equal(again, summed)
    assert_near(projected.sum(dim=0), reference.dot(normed, weight), dtype)


def test_a_first_layer_has_no_parts() -> None:
    x, norm = on_device(rows_of(2, 70)), on_device(1 + rows_of(1, 70, 1)[0])
    matrix, weight = random_matrix("int8", 30, 70)
    summed, found = normed_product(x, None, norm, 1e-5, matrix)
    assert summed is x
    normed = reference.rms_norm(x.cpu().numpy(), norm.cpu().numpy(), 1e-5)
    assert_near(found.sum(dim=0), reference.dot(normed, weight))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "columns", "count", "bias"), [(1, 64, 1, False), (37, 290, 3, True)])
def test_swiglu(kind: Kind, width: int, columns: int, count: int, bias: bool) -> None:
    gate_up, weight = random_matrix(kind, 2 * width, columns, bias=bias)
    x, norm = rows_of(count, columns), 1 + rows_of(1, columns, 1)[0]
    part = rows_of(count, columns, 2)
    summed, found = gated_product(on_device(x), on_device(part[None]), on_device(norm), 1e-5, gate_up)
    projected = reference.dot(reference.rms_norm(x + part, norm, 1e-5), weight)
    if gate_up.bias is not None:
        projected += gate_up.bias.cpu().numpy()
    assert_near(summed, x + part)
    assert_near(found, reference.silu_mul(projected[:, :width], projected[:, width:]))


def test_what_is_packed_has_scales() -> None:
    values = torch.zeros(2, 1, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="a matrix of int4 without scales; what is packed has them"):
        Matrix("int4", values, None, 64)
    with pytest.raises(ValueError, match="a matrix of float with scales; only what is packed has them"):
        Matrix("float", values, torch.ones(2, 1), 64)


def test_launches_are_of_tensors_without_gaps() -> None:
    """Kernels are given no strides."""
    matrix, _ = random_matrix("float", 4, 8)
    made: list[Launch] = []
    with pytest.raises(AssertionError, match="x has gaps"):
        product(on_device(rows_of(8, 8)).T[:3].T, matrix, made.append)
