"""Launches: a kernel, how many programs of it, and what they are given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
INTERPRETED = bool(triton.knobs.runtime.interpret)
# The interpreter multiplies the bits of bfloat16 as integers: there operands are rounded, and then widened.
_WIDENED = tl.constexpr(INTERPRETED)


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch of a kernel."""

    kernel: Any  # of triton.jit
    grid: tuple[int, int, int]  # programs
    arguments: dict[str, Any]  # by the names of the kernel's parameters
    warps: int = 4
    stages: int = 3  # of loads that a loop has under way

    def __post_init__(self) -> None:
        for name, value in self.arguments.items():
            assert not isinstance(value, Tensor) or value.is_contiguous(), (
                f"{name} has gaps, and kernels know no strides"
            )


Launcher = Callable[[Launch], None]  # what becomes of a launch


def launch(made: Launch) -> None:
    """Launch it, on the device that is PyTorch's current one."""
    made.kernel[made.grid](**made.arguments, num_warps=made.warps, num_stages=made.stages)


@triton.jit
def dot(a: tl.tensor, b: tl.tensor, total: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """a [m, k] times b [k, n] in DTYPE, added to `total` in float32."""
    a, b = a.to(DTYPE), b.to(DTYPE)
    if _WIDENED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")
