"""Matrices of random weights as kernels for GPUs take them, beside the numbers that they stand for."""

import numpy as np
import torch

from salmonrun.kernels.formats import (
    NF4,
    dequantize_blocks,
    dequantize_scales,
    dequantize_table,
    quantize_blocks,
    quantize_nf4,
)
from salmonrun.kernels.gpu.launch import INTERPRETED
from salmonrun.kernels.gpu.matrix import Kind, Matrix, NestedScales
from salmonrun.runtime.arrays import F32

DEVICE = "cpu" if INTERPRETED else "cuda"


def on_device(array: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE, dtype)


def random_matrix(
    kind: Kind, rows: int, columns: int, block: int = 64, bias: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Matrix, F32]:
    """A matrix whose products are of order one, and its numbers [rows, columns], rounded to `dtype` once."""
    rng = np.random.default_rng(rows + columns)
    weight = (rng.normal(size=(rows, columns)) / np.sqrt(columns)).astype(np.float32)
    added = on_device(rng.normal(size=rows).astype(np.float32), dtype) if bias else None
    if kind == "float":
        values = on_device(weight, dtype)
        return Matrix(kind, values, None, columns, added), values.float().cpu().numpy()
    if kind == "nf4":
        whole = np.pad(weight, ((0, 0), (0, -columns % block)))
        packed, scales = quantize_nf4(whole, block)
        stored = dequantize_table(packed, NF4, scales, block, whole.size).reshape(rows, -1)
        packed, scales = packed.reshape(rows, -1, block // 2), scales.reshape(rows, -1)
    else:
        bits = int(kind.removeprefix("int"))
        packed, scales = quantize_blocks(weight, bits, block)
        stored = dequantize_blocks(packed, scales, bits)
    rounded = torch.from_numpy(stored[:, :columns]).to(dtype).float().numpy()
    return Matrix(kind, on_device(packed), on_device(scales), columns, added), rounded


def nested(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """A matrix whose scales are quantized in turn, as by bitsandbytes, and one with the numbers these stand for."""
    assert isinstance(matrix.scales, torch.Tensor)
    flat = matrix.scales.cpu().numpy().ravel()
    block, code = 256, np.linspace(-1, 1, 256, dtype=np.float32)
    offset = float(flat.mean())
    centred = np.pad(flat - np.float32(offset), (0, -len(flat) % block)).reshape(-1, block)
    outer = np.abs(centred).max(axis=1)
    indices = np.abs(centred[:, :, None] / outer[:, None, None] - code).argmin(axis=2).astype(np.uint8)
    indices = indices.ravel()[: len(flat)]
    numbers = dequantize_scales(indices, code, outer, block, offset).reshape(matrix.scales.shape)
    scales = NestedScales(on_device(indices.reshape(numbers.shape)), on_device(code), on_device(outer), offset, block)
    whole, plain = (Matrix(matrix.kind, matrix.values, kept, matrix.columns) for kept in (scales, on_device(numbers)))
    return whole, plain
