"""The cross-attention of the Q-Former's first layer: its queries are the same for every window, whatever is heard.

So they are multiplied with the weights of the keys once (`absorbed`), and neither keys nor values are projected: what
comes out are weighted sums of the frames, to be multiplied with the weights of the values (export/graphs/qformer.py has
the algebra).
"""

import triton
import triton.language as tl
from torch import Tensor

from salmonrun.kernels.gpu.launch import TYPES, Launch, Launcher, dot, launch

COLUMNS = 128  # that are read at once


def attend_windows(states: Tensor, absorbed: Tensor, frames: int, stride: int, run: Launcher = launch) -> Tensor:
    """Let constant queries attend to every window.

    Args:
        states: [T, width], of which windows are not copied.
        absorbed: [queries, width]: of each query and head, what the products with states are its scores.
        frames: of a window.
        stride: from one window to the next.
        run: what becomes of the launch.

    Returns:
        [windows, queries, width], as `states` is: the weighted sums. Frames that fill no window are left out.
    """
    (total, width), queries = states.shape, len(absorbed)
    windows = max(0, (total - frames) // stride + 1)
    out = states.new_empty(windows, queries, width)
    if not windows:
        return out
    arguments = {"states": states, "absorbed": absorbed, "out": out, "width": width, "queries": queries}
    constants = {
        "FRAMES": frames,
        "STRIDE": stride,
        "LANES": max(16, triton.next_power_of_2(queries)),
        "PLACES": max(16, triton.next_power_of_2(frames)),
        "COLUMNS": COLUMNS,
        "DTYPE": TYPES[states.dtype],
    }
    run(Launch(window_attention_kernel, (windows, 1, 1), arguments | constants))
    return out


@triton.jit
def window_attention_kernel(
    states: tl.tensor,
    absorbed: tl.tensor,
    out: tl.tensor,
    width: tl.tensor,
    queries: tl.tensor,
    FRAMES: tl.constexpr,
    STRIDE: tl.constexpr,
    LANES: tl.constexpr,
    PLACES: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
) -> None:
    """One window."""
    window = tl.program_id(0)
    lanes, places = tl.arange(0, LANES), tl.arange(0, PLACES)
    asked, there = (lanes < queries)[:, None], (places < FRAMES)[:, None]
    rows = states + (window * STRIDE + places)[:, None].to(tl.int64) * width
    scores = tl.zeros([LANES, PLACES], tl.float32)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = (columns < width)[None, :]
        query = tl.load(absorbed + lanes[:, None] * width + columns[None, :], mask=asked & inside, other=0)
        frame = tl.load(rows + columns[None, :], mask=there & inside, other=0)
        scores = dot(query, tl.trans(frame), scores, DTYPE)
    scores = tl.where((places < FRAMES)[None, :], scores, float("-inf"))
    shares = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    shares = shares / tl.sum(shares, axis=1)[:, None]
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = (columns < width)[None, :]
        frame = tl.load(rows + columns[None, :], mask=there & inside, other=0)
        summed = dot(shares, frame, tl.zeros([LANES, COLUMNS], tl.float32), DTYPE)
        row = out + (window * queries + lanes)[:, None].to(tl.int64) * width
        tl.store(row + columns[None, :], summed.to(out.dtype.element_ty), mask=asked & inside)
