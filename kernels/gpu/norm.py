"""RMSNorm and the sums in front of it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from salmonrun.kernels.gpu.launch import Launch, Launcher, launch


@triton.jit
def summed_inputs(
    x: tl.tensor,
    parts: tl.tensor,
    rows: tl.tensor,  # [ROWS]
    columns: tl.tensor,  # [COLUMNS]
    m: tl.tensor,
    k: tl.tensor,
    PARTS: tl.constexpr,
) -> tl.tensor:
    """Some columns of x [m, k] and its parts [PARTS, m, k] in order, rounded as x is: [COLUMNS, ROWS] in float32."""
    seen = (rows < m)[None, :] & (columns < k)[:, None]
    places = rows[None, :] * k + columns[:, None]
    total = tl.load(x + places, mask=seen, other=0).to(tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts + part * m * k + places, mask=seen, other=0).to(tl.float32)
    return total.to(x.dtype.element_ty).to(tl.float32)


@triton.jit
def add_norm_kernel(
    x: tl.tensor,
    parts: tl.tensor,
    norm: tl.tensor,
    summed: tl.tensor,
    out: tl.tensor,
    m: tl.tensor,
    k: tl.tensor,
    eps: tl.tensor,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One row, which is held as a whole."""
    row = tl.program_id(0) + tl.arange(0, 1)
    columns = tl.arange(0, COLUMNS)
    value = summed_inputs(x, parts, row, columns, m, k, PARTS)
    inverse = tl.rsqrt(tl.sum(value * value, axis=0) / k + eps)
    places, seen = row[None, :] * k + columns[:, None], (columns < k)[:, None]
    weight = tl.load(norm + columns, mask=columns < k, other=0).to(tl.float32)
    tl.store(summed + places, value.to(summed.dtype.element_ty), mask=seen)
    tl.store(out + places, (value * inverse[None, :] * weight[:, None]).to(out.dtype.element_ty), mask=seen)


def add_norm(x: Tensor, parts: Tensor, norm: Tensor, eps: float, run: Launcher = launch) -> tuple[Tensor, Tensor]:
    """A residual and its RMSNorm.

    Args:
        x: [m, k].
        parts: [any, m, k], added to x in order.
        norm: [k].
        eps: added to the mean square.
        run: what becomes of the launch.

    Returns:
        the sum and the sum normed, each [m, k] as x is.
    """
    m, k = x.shape
    summed, out = torch.empty_like(x), torch.empty_like(x)
    arguments = {"x": x, "parts": parts, "norm": norm, "summed": summed, "out": out, "m": m, "k": k, "eps": eps}
    constants = {"PARTS": len(parts), "COLUMNS": triton.next_power_of_2(k)}
    run(Launch(add_norm_kernel, (m, 1, 1), arguments | constants))
    return summed, out
