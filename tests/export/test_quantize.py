"""Quantized matrix products: what the nodes compute is what the stored numbers say, and those are near the weights."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from salmonrun.export.graphs.builder import GraphBuilder, WeightFile
from salmonrun.export.graphs.linear import (
    BLOCK,
    ENCODER_LINEARS,
    LM_HEAD_LINEARS,
    Linear,
    Matrix,
    Stacked,
    blockwise_linear,
    dynamic_int8_linear,
    llm_linear,
    plain_linear,
    quantize,
)
from salmonrun.export.options import LlmPrecision
from salmonrun.kernels.formats import dequantize_blocks
from salmonrun.runtime.arrays import F32

SHAPES = [
    (1, 32),
    (8, 64),
    (7, 40),
    (33, 100),
    (5, 31),
    (64, 33),
]  # [out, in]: odd sizes, last blocks that are not full


def weights(out: int, size: int, seed: int = 0) -> F32:
    """Normal, with an outlier per row and rows of very different size."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 1, (out, size)) * 10.0 ** rng.uniform(-3, 1, (out, 1))
    weight[np.arange(out), rng.integers(0, size, out)] *= -6
    return weight.astype(np.float32)


def activations(rows: int, size: int, seed: int = 1) -> F32:
    return np.random.default_rng(seed).normal(0, 1, (rows, size)).astype(np.float32)


def run(
    linear: Linear, x: F32, weight: Matrix, bias: F32 | None, folder: Path, accuracy_level: int | None = None
) -> F32:
    """x [rows, in] through a graph of this one product, as ONNX Runtime computes it."""
    path = folder / "linear.onnx"
    with WeightFile(folder / "linear.onnx.data") as file:
        graph = GraphBuilder("linear", file)
        product = linear(graph, graph.input("x", ["rows", x.shape[1]]), "proj", weight, bias)
        graph.output(product, "y", ["rows", weight.shape[0]])
    graph.save(path)
    if accuracy_level is not None:
        model = onnx.load(path, load_external_data=False)
        (node,) = (node for node in model.graph.node if node.op_type == "MatMulNBits")
        (level,) = (attribute for attribute in node.attribute if attribute.name == "accuracy_level")
        level.i = accuracy_level
        onnx.save(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": x})
    return y


def relative_error(found: F32, expected: F32) -> float:
    """rms of the difference / rms of what is expected."""
    return float(np.sqrt(np.mean(np.square(found - expected)) / np.mean(np.square(expected))))


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stacked_tensors_in_pieces_make_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: LlmPrecision, dtype: torch.dtype
) -> None:
    parts = [torch.from_numpy(weights(rows, 96, seed=rows)).to(dtype) for rows in (50, 7, 33)]
    whole = torch.cat(parts).float().numpy()
    x = activations(2, 96)
    expected, files = run(llm_linear(precision), x, whole, None, tmp_path), []
    files.append((tmp_path / "linear.onnx.data").read_bytes())
    monkeypatch.setattr("salmonrun.export.graphs.linear.PIECE", 10 * 96)
    np.testing.assert_array_equal(run(llm_linear(precision), x, Stacked(parts), None, tmp_path), expected)
    assert (tmp_path / "linear.onnx.data").read_bytes() == files[0]


def test_pieces_of_stacked_tensors() -> None:
    parts = [torch.from_numpy(weights(rows, 6, seed=rows)) for rows in (3, 1, 4)]
    whole, stacked = torch.cat(parts).numpy(), Stacked(parts)
    assert stacked.shape == (8, 6)
    for start in range(8):
        for end in range(start + 1, 10):
            for columns in (slice(None), slice(2, 5)):
                np.testing.assert_array_equal(stacked[start:end, columns], whole[start:end, columns])


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_node_multiplies_with_the_dequantized_weights(
    shape: tuple[int, int], bits: int, rows: int, tmp_path: Path
) -> None:
    """To 1e-4 with float activations; level 4, which bundles have, rounds them to 8 bits a block."""
    weight, x = weights(*shape), activations(rows, shape[1])
    exact = x @ dequantize_blocks(*quantize(weight, bits, BLOCK), bits)[:, : shape[1]].T
    scale = np.abs(x) @ np.abs(weight).T  # of the sums' terms
    for level in (0, 1):
        found = run(blockwise_linear(bits), x, weight, None, tmp_path, accuracy_level=level)
        assert np.all(np.abs(found - exact) <= 1e-4 * scale)
    found = run(blockwise_linear(bits), x, weight, None, tmp_path)
    step = np.repeat(np.abs(x).max(axis=1)[:, None], shape[1], axis=1) / 127  # an upper bound for every block
    assert np.all(np.abs(found - exact) <= (step / 2) @ np.abs(weight).T * 1.1 + 1e-4 * scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_bundles_ask_for_int8_activations(bits: int, tmp_path: Path) -> None:
    run(blockwise_linear(bits), activations(1, 64), weights(4, 64), None, tmp_path)
    nodes = onnx.load(tmp_path / "linear.onnx", load_external_data=False).graph.node
    (node,) = (node for node in nodes if node.op_type == "MatMulNBits")
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    assert attributes == {"K": 64, "N": 4, "bits": bits, "block_size": 32, "accuracy_level": 4}


@pytest.mark.parametrize(("bits", "budget"), [(4, 0.12), (8, 0.01)])
def test_products_stay_near_those_of_the_weights(bits: int, budget: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.normal(0, 0.1, (65, 256)).astype(np.float32), activations(9, 256)
    assert relative_error(run(blockwise_linear(bits), x, weight, None, tmp_path), x @ weight.T) < budget


@pytest.mark.parametrize("shape", [(64, 128), (33, 100), (7, 31)])
def test_dynamic_int8_stays_near_the_float_product(shape: tuple[int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(0, 0.1, shape).astype(np.float32), rng.normal(0, 0.5, shape[0]).astype(np.float32)
    x = activations(20, shape[1])
    for offset in (None, bias):
        expected = x @ weight.T + (0 if offset is None else offset)
        assert relative_error(run(dynamic_int8_linear, x, weight, offset, tmp_path), expected) < 0.02


@pytest.mark.parametrize("linear", [plain_linear, dynamic_int8_linear, blockwise_linear(4), blockwise_linear(8)])
def test_zero_rows_and_blocks_give_zeros(linear: Linear, tmp_path: Path) -> None:
    weight, x = weights(5, 96), activations(3, 96)
    weight[1] = 0
    weight[2, BLOCK : 2 * BLOCK] = 0
    bias = np.arange(5, dtype=np.float32)
    with np.errstate(divide="raise", invalid="raise"):
        found = run(linear, x, weight, bias, tmp_path)
    assert np.all(np.isfinite(found))
    np.testing.assert_array_equal(found[:, 1], 1)
    only_others = np.delete(weight, 1, axis=0)
    expected = x @ only_others.T + np.delete(bias, 1)
    assert relative_error(np.delete(found, 1, axis=1), expected) < 0.15


def test_the_plain_product_is_exact(tmp_path: Path) -> None:
    weight, x, bias = weights(7, 40), activations(3, 40), activations(1, 7)[0]
    np.testing.assert_allclose(run(plain_linear, x, weight, bias, tmp_path), x @ weight.T + bias, rtol=1e-5, atol=1e-4)


def test_an_int4_bundle_keeps_its_output_layer_at_eight_bits(tmp_path: Path) -> None:
    assert set(LM_HEAD_LINEARS) == {"fp32", "int8", "int4"}
    assert set(ENCODER_LINEARS) == {"fp32", "fp16", "int8"}
    weight, x = weights(9, 64), activations(2, 64)
    head, layer = (run(linear, x, weight, None, tmp_path) for linear in (LM_HEAD_LINEARS["int4"], llm_linear("int4")))
    expected = run(llm_linear("int8"), x, weight, None, tmp_path)
    np.testing.assert_array_equal(head, expected)
    assert not np.array_equal(layer, expected)
