"""Rounding with compensation: the algorithm as it was first written; both decoders' formats find its values again."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from salmonrun.export.weights import rounding
from salmonrun.export.weights.rounding import DAMPING, SHARES, gram, inverse_root, round_clipped, round_compensated
from salmonrun.kernels.formats import (
    dequantize_blocks,
    dequantize_super_t16,
    dequantize_t16,
    quantize_blocks,
    quantize_super_blocks,
    quantize_super_t16,
    quantize_t16,
)


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / 8


def gram_of(columns: int, positions: int, seed: int = 1) -> Tensor:
    """Of inputs that go together, as those of a layer do."""
    mixed = matrix(positions, max(1, columns // 4), seed) @ matrix(max(1, columns // 4), columns, seed + 1)
    x = mixed + 0.05 * matrix(positions, columns, seed + 2)
    return x.T @ x


def rounded_for(weight: Tensor, gram: Tensor, bits: int, block: int) -> Tensor:
    return round_compensated(weight, inverse_root(gram), bits, block)


def nearest(weight: Tensor, bits: int, block: int) -> Tensor:
    packed, scales = quantize_t16(weight.numpy(), bits, block)
    return torch.from_numpy(dequantize_t16(packed, scales)[: len(weight), : weight.shape[1]])


def change(weight: Tensor, rounded: Tensor, gram: Tensor) -> float:
    """Squared change of the products with all inputs."""
    off = (rounded - weight).double()
    return float((off @ gram.double() * off).sum())


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 150),
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([32, 64, 128]),
    seed=st.integers(0, 1000),
)
def test_both_formats_find_the_values_again(rows: int, columns: int, bits: int, block: int, seed: int) -> None:
    rounded = rounded_for(matrix(rows, columns, seed), gram_of(columns, 64, seed), bits, block)
    assert torch.equal(nearest(rounded, bits, block), rounded)
    packed, scales = quantize_blocks(rounded.numpy(), bits, block)
    np.testing.assert_array_equal(dequantize_blocks(packed, scales, bits)[:, :columns], rounded.numpy())


@given(rows=st.integers(1, 20), columns=st.integers(1, 300), seed=st.integers(0, 1000))
def test_both_formats_find_the_values_of_super_blocks_again(rows: int, columns: int, seed: int) -> None:
    weight = matrix(rows, columns, seed)
    weight[:, 40:80] *= 1e-3
    rounded = round_compensated(weight, inverse_root(gram_of(columns, 64, seed)), 4, 32, super_block=128)
    found = dequantize_super_t16(*quantize_super_t16(rounded.numpy(), 32))[:rows, :columns]
    np.testing.assert_array_equal(found, rounded.numpy())
    graph = dequantize_blocks(*quantize_super_blocks(rounded.numpy(), 32), 4)[:, :columns]
    np.testing.assert_array_equal(graph, rounded.numpy())


def test_super_blocks_cost_little_more_than_scales_of_their_own() -> None:
    weight, gram = matrix(64, 512), gram_of(512, 2000)
    own, plain = (
        change(weight, round_compensated(weight, inverse_root(gram), 4, 32, super_block=shared), gram)
        for shared in (128, None)
    )
    assert own < 1.2 * plain


@pytest.mark.parametrize("block", [32, 128])
def test_products_change_less_than_with_the_nearest_values(block: int) -> None:
    weight, gram = matrix(64, 256), gram_of(256, 1000)
    rounded = rounded_for(weight, gram, 4, block)
    assert change(weight, rounded, gram) < 0.3 * change(weight, nearest(weight, 4, block), gram)


def test_it_is_optimal_brain_quantization_in_the_order_of_the_inputs() -> None:
    weight, gram = matrix(8, 96), gram_of(96, 400)
    assert torch.allclose(rounded_for(weight, gram, 4, 32), as_first_written(weight, gram, 4, 32), atol=1e-6)


def as_first_written(weight: Tensor, gram: Tensor, bits: int, block: int) -> Tensor:
    """Frantar and Alistarh 2022 (OBC), equations 7 and 4: the inverse itself, one input struck out after the other."""
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    damped = gram.double() + DAMPING * gram.double().diagonal().mean() * torch.eye(len(gram), dtype=torch.double)
    inverse, rest, out = torch.linalg.inv(damped), weight.double().clone(), torch.zeros_like(weight)
    counts = torch.linalg.cholesky(inverse, upper=True).diagonal() ** -2  # of an error that later inputs make up for
    for i in range(weight.shape[1]):
        if i % block == 0:
            part = rest[:, i : i + block]
            largest = part.abs().argmax(dim=1)
            best = torch.full((len(weight),), torch.inf, dtype=torch.double)
            scale = torch.zeros_like(best)
            for share in SHARES:
                tried = (part.gather(1, largest[:, None]) * share / lowest).half().double()
                error = ((part / tried).round().clamp(lowest, highest) * tried - part) ** 2 @ counts[i : i + block]
                scale, best = torch.where(error < best, tried[:, 0], scale), torch.minimum(error, best)
        steps = (rest[:, i] / scale).round().clamp(lowest, highest)
        steps[largest == i % block] = lowest
        out[:, i] = (steps * scale).float()
        error = (rest[:, i] - steps * scale) / inverse[i, i]
        rest[:, i:] -= error[:, None] * inverse[i, i:]
        inverse = inverse - inverse[:, i, None] * inverse[None, i] / inverse[i, i]
    return out


def test_zeros_stay_zeros_and_inputs_that_are_never_there_do_no_harm() -> None:
    weight, gram = matrix(4, 64), gram_of(64, 100)
    weight[1], weight[:, 40] = 0, 0
    gram[5], gram[:, 5] = 0, 0
    rounded = rounded_for(weight, gram, 4, 32)
    assert rounded.isfinite().all()
    assert not rounded[1].any()
    assert (rounded[:, 5] - weight[:, 5]).abs().max() < 0.1


def test_without_inputs_blocks_are_rounded_by_themselves_no_worse_than_to_the_nearest_values() -> None:
    weight = matrix(16, 64)
    rounded = rounded_for(weight, torch.zeros(64, 64), 4, 32)
    off, nearest_off = (
        (values - weight).square().reshape(16, 2, 32).sum(dim=2) for values in (rounded, nearest(weight, 4, 32))
    )
    assert (off <= nearest_off).all()
    assert off.sum() < nearest_off.sum()


@pytest.mark.parametrize("columns", [7, 512, 700])
def test_sums_of_inputs(columns: int) -> None:
    x = matrix(90, columns)
    torch.testing.assert_close(gram(x), x.T @ x)


@pytest.mark.parametrize("columns", [5, 512, 700])
def test_the_root_of_the_inverse_is_that_of_the_inverse_in_float64(
    columns: int, caplog: pytest.LogCaptureFixture
) -> None:
    sums = gram_of(columns, 2000)
    damped = sums.double() + DAMPING * sums.double().diagonal().mean() * torch.eye(columns, dtype=torch.double)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    assert (inverse_root(sums) - expected).norm() < 1e-3 * expected.norm()
    assert not caplog.records


def test_where_float32_does_not_do_it_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = gram_of(96, 300)
    expected = inverse_root(sums)
    monkeypatch.setattr(rounding, "LARGEST_RESIDUE", 0.0)
    torch.testing.assert_close(inverse_root(sums), expected, atol=1e-3, rtol=1e-3)
    assert "off by" in caplog.text
    assert "float64" in caplog.text
    sums[3, 3] = torch.nan
    with pytest.raises(ValueError, match="96 inputs are not positive definite"):
        inverse_root(sums)


@pytest.mark.parametrize("bits", [4, 8])
def test_clipped_blocks_change_less_and_are_found_again(bits: int) -> None:
    weight, counts = matrix(40, 200), torch.rand(200, generator=torch.Generator().manual_seed(0))
    counts[::32] *= 0.01
    plain, weighted = round_clipped(weight, bits, 64), round_clipped(weight, bits, 64, counts)
    for rounded in (plain, weighted):
        assert torch.equal(nearest(rounded, bits, 64), rounded)
    off = {name: (w - weight).square() for name, w in (("nearest", nearest(weight, bits, 64)), ("plain", plain))}
    if bits == 4:
        assert off["plain"].sum() < 0.99 * off["nearest"].sum()
        assert ((weighted - weight).square() @ counts).sum() < (off["plain"] @ counts).sum()
