"""Products of few rows with a matrix, and what is fused with them: sums and a norm or the parts of attention in front,
SwiGLU behind.

Where a matrix has few outputs, its inputs are split between programs, as often as its shape says; each writes its part
of the sum, and whoever reads them adds them in order. So there are no atomics, and no launch for the sum. A row's
numbers do not depend on the others.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from salmonrun.kernels.gpu.launch import TYPES, Launch, Launcher, launch
from salmonrun.kernels.gpu.matrix import Matrix, add_products, input_columns
from salmonrun.kernels.gpu.norm import summed_inputs

STEP = 128  # inputs of a tile; twice as many of int8 where so many share a scale, since a half has whole blocks
OUTPUTS = (64, 32, 16)  # of a program: as many as leave PROGRAMS of them
PROGRAMS = 128  # about as many multiprocessors as a large GPU has
SPLITS = 8  # at most
ROWS = (16, 32)  # of a program; 16 are what a tensor core takes


def product(x: Tensor, matrix: Matrix, run: Launcher = launch) -> Tensor:
    """x [m, in] times a matrix [out, in]: parts [splits, m, out] in float32, which add up to it."""
    return _multiply(matrix, x.dtype, {"x": x, "INPUT": "rows"}, len(x), run)


def normed_product(
    x: Tensor, parts: Tensor | None, norm: Tensor, eps: float, matrix: Matrix, run: Launcher = launch
) -> tuple[Tensor, Tensor]:
    """The RMSNorm of a residual times a matrix.

    Args:
        x: [m, in].
        parts: [any, m, in], added to x in order; None: there are none.
        norm: [in].
        eps: added to the mean square.
        matrix: [out, in].
        run: what becomes of the launch.

    Returns:
        the residual [m, in] as x is, and parts [splits, m, out] in float32, which add up to the product.
    """
    summed, inputs = _normed(x, parts, norm, eps)
    return summed, _multiply(matrix, x.dtype, inputs, len(x), run)


def gated_product(
    x: Tensor, parts: Tensor, norm: Tensor, eps: float, gate_up: Matrix, run: Launcher = launch
) -> tuple[Tensor, Tensor]:
    """SwiGLU of the same: `gate_up` [2 width, in] has the gate's rows first.

    Returns:
        the residual [m, in], and what is hidden [m, width], both as x is.
    """
    summed, inputs = _normed(x, parts, norm, eps)
    width = gate_up.rows // 2
    hidden = x.new_empty(len(x), width)
    run(_launch(gate_up, width, 1, x.dtype, inputs | {"out": hidden, "GATED": True}, len(x)))
    return summed, hidden


def attended_product(
    states: Tensor, weights: Tensor, dtype: torch.dtype, matrix: Matrix, run: Launcher = launch
) -> Tensor:
    """What attention gives, put together from its parts, times a matrix.

    Args:
        states: [m, heads, parts, head_dim] in float32, as `salmonrun.kernels.gpu.attention.attend` gives them.
        weights: [m, heads, parts] in float32: logarithms.
        dtype: what is multiplied.
        matrix: [out, heads * head_dim].
        run: what becomes of the launch.

    Returns:
        parts [splits, m, out] in float32, which add up to it.
    """
    _, _, parts, head_dim = states.shape
    inputs = {"x": states, "parts": weights, "INPUT": "attended", "PARTS": parts, "HEAD_DIM": head_dim}
    return _multiply(matrix, dtype, inputs, len(states), run)


def splits_of(outputs: int, inputs: int) -> int:
    """Programs that share the inputs of a matrix: as many as a large GPU needs, where each has two tiles left."""
    splits = 1
    while splits < SPLITS and _programs(outputs) * splits < PROGRAMS and inputs >= 4 * splits * STEP:
        splits *= 2
    return splits


def _normed(x: Tensor, parts: Tensor | None, norm: Tensor, eps: float) -> tuple[Tensor, dict[str, Any]]:
    summed = x if parts is None else torch.empty_like(x)
    inputs = {"x": x, "parts": parts, "norm": norm, "eps": eps, "INPUT": "normed"}
    if parts is None:
        return x, inputs
    return summed, inputs | {"summed": summed, "PARTS": len(parts)}


def _multiply(matrix: Matrix, dtype: torch.dtype, inputs: dict[str, Any], rows: int, run: Launcher) -> Tensor:
    splits = splits_of(matrix.rows, matrix.columns)
    out = torch.empty(splits, rows, matrix.rows, device=matrix.values.device)
    run(_launch(matrix, matrix.rows, splits, dtype, inputs | {"out": out}, rows))
    return out


def _launch(matrix: Matrix, outputs: int, splits: int, dtype: torch.dtype, inputs: dict[str, Any], rows: int) -> Launch:
    """A product's launch: `inputs` are the rows, and what differs from a plain product."""
    of_program = _outputs(outputs)
    step = 2 * STEP if matrix.kind == "int8" and matrix.block == STEP else STEP
    tile = next((size for size in ROWS if size >= rows), ROWS[-1])
    plain = {"parts": None, "norm": None, "summed": None, "eps": 0.0, "PARTS": 0, "HEAD_DIM": 1, "GATED": False}
    sizes = {"m": rows, "k": matrix.columns, "n": outputs}
    constants = {"SPLITS": splits, "ROWS": tile, "OUTPUTS": of_program, "STEP": step, "DTYPE": TYPES[dtype]}
    grid = triton.cdiv(outputs, of_program), splits, triton.cdiv(rows, tile)
    arguments = plain | inputs | matrix.arguments | sizes | constants
    if arguments["INPUT"] == "attended":  # what puts the parts together needs the registers of eight warps
        return Launch(product_kernel, grid, arguments, warps=8, stages=1)
    return Launch(product_kernel, grid, arguments)


def _outputs(outputs: int) -> int:
    return next((size for size in OUTPUTS if triton.cdiv(outputs, size) >= PROGRAMS), OUTPUTS[-1])


def _programs(outputs: int) -> int:
    return triton.cdiv(outputs, _outputs(outputs))


@triton.jit
def product_kernel(
    x: tl.tensor,
    parts: tl.tensor,
    norm: tl.tensor,
    summed: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    code: tl.tensor,
    outer: tl.tensor,
    offset: tl.tensor,
    table: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    m: tl.tensor,
    k: tl.tensor,
    n: tl.tensor,
    eps: tl.tensor,
    INPUT: tl.constexpr,
    PARTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    GATED: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STEP: tl.constexpr,
    DTYPE: tl.constexpr,
) -> None:
    """OUTPUTS outputs of ROWS rows, over one split of the inputs."""
    split = tl.program_id(1)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    there = outputs < n
    inverse = tl.full([ROWS], 1, tl.float32)
    if INPUT == "normed":
        inverse = _inverse_rms(x, parts, summed, rows, m, k, eps, PARTS, STEP)
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    up = tl.zeros([OUTPUTS, ROWS], tl.float32)
    tiles = tl.cdiv(k, STEP)
    each = tl.cdiv(tiles, SPLITS)
    for tile in range(split * each, tl.minimum(split * each + each, tiles)):
        near, far = input_columns(tile, KIND, STEP)
        first = _inputs(x, parts, norm, inverse, rows, near, m, k, INPUT, PARTS, HEAD_DIM)
        second = _inputs(x, parts, norm, inverse, rows, far, m, k, INPUT, PARTS, HEAD_DIM)
        total = add_products(
            total, first, second, values, scales, code, outer, offset, table, outputs, there, k, tile, KIND, BLOCK,
            NESTED, STEP, DTYPE,
        )  # fmt: skip
        if GATED:
            up = add_products(
                up, first, second, values, scales, code, outer, offset, table, n + outputs, there, k, tile, KIND, BLOCK,
                NESTED, STEP, DTYPE,
            )  # fmt: skip
    if bias is not None:
        # of the first part alone
        alone = there & (split == 0)
        total += tl.load(bias + outputs, mask=alone, other=0).to(tl.float32)[:, None]
        if GATED:
            up += tl.load(bias + n + outputs, mask=alone, other=0).to(tl.float32)[:, None]
    if GATED:
        total = total / (1 + tl.exp(-total)) * up
    places = (split * m + rows)[None, :].to(tl.int64) * n + outputs[:, None]
    tl.store(out + places, total.to(out.dtype.element_ty), mask=there[:, None] & (rows < m)[None, :])


@triton.jit
def _inverse_rms(
    x: tl.tensor,
    parts: tl.tensor,
    summed: tl.tensor,
    rows: tl.tensor,
    m: tl.tensor,
    k: tl.tensor,
    eps: tl.tensor,
    PARTS: tl.constexpr,
    STEP: tl.constexpr,
) -> tl.tensor:
    """One over the root mean square of each row; one program of all writes the rows to `summed`."""
    writes = (tl.program_id(0) == 0) & (tl.program_id(1) == 0)
    squares = tl.zeros([rows.shape[0]], tl.float32)
    for start in range(0, k, STEP):
        columns = start + tl.arange(0, STEP)
        value = summed_inputs(x, parts, rows, columns, m, k, PARTS)
        squares += tl.sum(value * value, axis=0)
        if summed is not None:
            seen = (rows < m)[None, :] & (columns < k)[:, None] & writes
            tl.store(summed + rows[None, :] * k + columns[:, None], value.to(summed.dtype.element_ty), mask=seen)
    return tl.rsqrt(squares / k + eps)


@triton.jit
def _inputs(
    x: tl.tensor,
    parts: tl.tensor,
    norm: tl.tensor,
    inverse: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    m: tl.tensor,
    k: tl.tensor,
    INPUT: tl.constexpr,
    PARTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
) -> tl.tensor:
    """Some columns of what is multiplied: [COLUMNS, ROWS] in float32, zeros where there are none."""
    if INPUT == "attended":
        value = _combined(x, parts, rows, columns, m, k, PARTS, HEAD_DIM)
    else:
        value = summed_inputs(x, parts, rows, columns, m, k, PARTS)
    if INPUT == "normed":
        weight = tl.load(norm + columns, mask=columns < k, other=0).to(tl.float32)
        value = value * inverse[None, :] * weight[:, None]
    return value


@triton.jit
def _combined(
    states: tl.tensor,
    weights: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    m: tl.tensor,
    k: tl.tensor,
    PARTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
) -> tl.tensor:
    """The parts of attention by their weights, in order: [COLUMNS, ROWS]."""
    seen = (rows < m)[None, :] & (columns < k)[:, None]
    heads = (rows[None, :] * (k // HEAD_DIM) + (columns // HEAD_DIM)[:, None]) * PARTS
    largest = tl.load(weights + heads, mask=seen, other=0)
    for part in tl.static_range(1, PARTS):
        largest = tl.maximum(largest, tl.load(weights + heads + part, mask=seen, other=0))
    value = tl.zeros([columns.shape[0], rows.shape[0]], tl.float32)
    total = tl.zeros([columns.shape[0], rows.shape[0]], tl.float32)
    for part in tl.static_range(PARTS):
        weight = tl.exp(tl.load(weights + heads + part, mask=seen, other=0) - largest)
        dims = (heads + part) * HEAD_DIM + (columns % HEAD_DIM)[:, None]
        value += weight * tl.load(states + dims, mask=seen, other=0)
        total += weight
    return value / total
