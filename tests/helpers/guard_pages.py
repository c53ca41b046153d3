"""Arrays whose first or last byte lies right beside a page that nobody may touch: one byte further is a crash."""

import ctypes
import mmap
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from salmonrun.kernels.formats import F32
from salmonrun.runtime.arrays import Array
from tests.helpers.native_llms import NativeModel

Edge = Literal["front", "back"]
EDGES: tuple[Edge, ...] = ("front", "back")

_LIBC = ctypes.CDLL(None, use_errno=True)
_NONE, _READ = 0, 1  # PROT_NONE, PROT_READ of sys/mman.h
PAGE = mmap.PAGESIZE

T = TypeVar("T")


def guarded(array: Array, edge: Edge, writable: bool = False) -> Array:
    """A copy right behind a page that cannot be accessed, or right in front of one.

    Args:
        array: of any shape.
        edge: the end that touches its guard without a gap; a guard is at either end.
        writable: else writing into it is a crash, too.
    """
    inner = -(-max(array.nbytes, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, PAGE + inner + PAGE)
    begin = PAGE if edge == "front" else PAGE + inner - array.nbytes
    found = np.frombuffer(memory, array.dtype, array.size, begin).reshape(array.shape)
    found[...] = array
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _protect(address, PAGE, _NONE)
    _protect(address + PAGE + inner, PAGE, _NONE)
    if not writable:
        _protect(address + PAGE, inner, _READ)
        found.flags.writeable = False
    return found


def _protect(address: int, size: int, access: int) -> None:
    if _LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), access):
        raise OSError(ctypes.get_errno(), "mprotect")


def guarded_parts(part: T, edge: Edge) -> T:
    """A dataclass, or a list of them, all of whose arrays are guarded."""
    if isinstance(part, list):
        return [guarded_parts(item, edge) for item in part]  # type: ignore[return-value]
    if isinstance(part, np.ndarray):
        return guarded(part, edge)  # type: ignore[return-value]
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{field.name: guarded_parts(getattr(part, field.name), edge) for field in fields(part)})
    return part


class GuardedModel(NativeModel):
    """A model whose weights, inputs and outputs are guarded."""

    def __init__(self, model: Any, instruction_set: str, threads: int, edge: Edge) -> None:
        super().__init__(guarded_parts(model, edge), instruction_set, threads)
        self._edge = edge

    def forward(self, *chunks: tuple[int, F32, int]) -> list[F32]:
        """As `NativeModel.forward`."""
        rows = np.array([(sequence, len(embeds), wanted) for sequence, embeds, wanted in chunks], np.int32)
        table = guarded(rows, self._edge)
        embeds = guarded(np.concatenate([embeds for _, embeds, _ in chunks]), self._edge)
        empty = np.empty((int(rows[:, 2].sum()), self.vocab), np.float32)
        logits = guarded(empty, self._edge, writable=True)
        self.native.forward(table, embeds, logits)
        return np.split(logits, np.cumsum(rows[:-1, 2]))
