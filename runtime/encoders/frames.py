"""What every encoder computes before its first layer, on our own kernels: products of frames and patches."""

from typing import TYPE_CHECKING, Protocol

import numpy as np

from salmonrun.runtime.arrays import F32, Array
from salmonrun.runtime.errors import AudioTooLongError

if TYPE_CHECKING:
    from salmonrun.kernels.cpu import _native


class FrontEnd(Protocol):
    """What is before an encoder's layers. Calls must not overlap."""

    leading: int  # states in front of the recording's, which are not part of the result

    def nothing_past(self) -> F32 | None:
        """What its convolution heard before the first block, batched; None: it has none that hears the past."""
        ...

    def __call__(self, encoder: "_native.Encoder", inputs: dict[str, Array], past: Array | None) -> tuple[F32, Array]:
        """The states [T, dim] that the first layer is given, and what is the past of the next block."""
        ...


def product(encoder: "_native.Encoder", matrix: "_native.Matrix", x: F32, width: int, gelu: bool = False) -> F32:
    """The products [n, width] of rows that may overlap."""
    out = np.empty((len(x), width), np.float32)
    if len(x):
        encoder.product(matrix, x, out, gelu)
    return out


def windows(rows: F32, kernel: int, step: int = 1) -> F32:
    """Each `kernel` consecutive rows [n, width], `step` apart, as one [count, kernel * width]: a view that overlaps."""
    count, width = max(0, (len(rows) - kernel) // step + 1), rows.shape[1]
    assert rows.flags.c_contiguous
    item = rows.itemsize
    return np.lib.stride_tricks.as_strided(rows, (count, kernel * width), (step * width * item, item))


def patches(bank: F32, size: int) -> F32:
    """A filter bank [F, bins] as patches [T, size * size], time-major; what fills no patch is left out."""
    count, bands = len(bank) // size, bank.shape[1] // size
    grid = bank[: count * size, : bands * size].reshape(count, size, bands, size)
    return np.ascontiguousarray(grid.transpose(0, 2, 1, 3), np.float32).reshape(count * bands, size * size)


def check_positions(count: int, limit: int) -> None:
    """Whether so many states have positions.

    Raises:
        AudioTooLongError: they do not.
    """
    if count > limit:
        raise AudioTooLongError(f"the encoder is given {count} states; it has positions for {limit}")
