"""KV buffers: a few sequences that grow in place, share prefixes and roll back."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

_prefixes = itertools.count(1)


class KVCache:
    """Keys and values of `rows` sequences, each with room for `capacity` positions.

    The buffers are reserved, not filled: memory is used as positions are written.
    """

    def __init__(self, layers: int, rows: int, kv_heads: int, capacity: int, head_dim: int, dtype: Any) -> None:
        shape = (rows, kv_heads, capacity, head_dim)
        self.capacity = capacity
        self.keys = [np.empty(shape, dtype) for _ in range(layers)]
        self.values = [np.empty(shape, dtype) for _ in range(layers)]
        self.slots = [Slot(self, row) for row in range(rows)]

    @property
    def buffers(self) -> list[npt.NDArray[Any]]:
        """All keys, then all values, each [rows, kv_heads, capacity, head_dim]."""
        return [*self.keys, *self.values]

    @property
    def bytes_per_position(self) -> int:
        """Bytes one position of one sequence takes."""
        _, heads, _, head_dim = self.keys[0].shape
        return int(2 * len(self.keys) * heads * head_dim * self.keys[0].itemsize)


@dataclass(eq=False)
class Slot:
    """One sequence's row in a cache."""

    cache: KVCache = field(repr=False)
    row: int
    length: int = 0  # valid positions
    prefix: int = field(default=0, repr=False)  # names the content of the first `prefix_length` positions; 0: nothing
    prefix_length: int = field(default=0, repr=False)

    @property
    def room(self) -> int:
        """Positions that can still be appended."""
        return self.cache.capacity - self.length

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} positions to {length}")
        self.length = length
        if length < self.prefix_length:
            self.prefix_length = length

    def copy_from(self, source: "Slot", length: int) -> int:
        """Become a copy of the first `length` positions of `source`, of this or another cache of the same model.

        Positions that both already share, from an earlier copy, are not copied again: beams share their prompt.

        Returns:
            The number of positions copied.
        """
        if not 0 <= length <= min(source.length, self.cache.capacity):
            raise ValueError(f"cannot copy {length} positions of {source} into {self}")
        if self is source:
            self.truncate(length)
            return 0
        start = 0
        if source.prefix and source.prefix == self.prefix:
            start = min(source.prefix_length, self.prefix_length, length)
        for target, origin in zip(self.cache.buffers, source.cache.buffers, strict=True):
            target[self.row, :, start:length] = origin[source.row, :, start:length]
        if not source.prefix:
            source.prefix, source.prefix_length = next(_prefixes), length
        self.length = length
        self.prefix, self.prefix_length = source.prefix, min(source.prefix_length, length)
        return length - start


def contiguous_runs(slots: list[Slot]) -> list[tuple[KVCache, int, int, npt.NDArray[np.intp]]]:
    """Group slots into runs of neighbouring rows: (cache, first row, last row + 1, index of each row's slot)."""
    order = sorted(range(len(slots)), key=lambda i: (id(slots[i].cache), slots[i].row))
    runs: list[tuple[KVCache, int, int, list[int]]] = []
    for i in order:
        slot = slots[i]
        if runs and runs[-1][0] is slot.cache and runs[-1][2] == slot.row:
            cache, first, end, members = runs[-1]
            runs[-1] = (cache, first, end + 1, [*members, i])
        else:
            runs.append((slot.cache, slot.row, slot.row + 1, [i]))
    return [(cache, first, end, np.array(members)) for cache, first, end, members in runs]
