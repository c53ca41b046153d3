"""KV buffers: a few sequences that grow in place, share prefixes and roll back."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

_names = itertools.count()


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
    def released(self) -> bool:
        """Whether the memory was given back."""
        return not self.slots

    def release(self) -> None:
        """Give the memory back now: cache and slots refer to each other, and the collector does not see arrays."""
        self.keys, self.values, self.slots = [], [], []


@dataclass(eq=False)
class Slot:
    """One sequence's row in a cache."""

    cache: KVCache = field(repr=False)
    row: int
    length: int = 0  # valid positions
    # Contents this slot begins with: name -> how many positions of it. Two slots that know the same name hold the same
    # in the positions that both have of it.
    prefixes: dict[int, int] = field(default_factory=dict, repr=False)

    @property
    def room(self) -> int:
        """Positions that can still be appended."""
        return self.cache.capacity - self.length

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} positions to {length}")
        self.length = length
        self.prefixes = {name: min(positions, length) for name, positions in self.prefixes.items()}

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
        kept = {name: min(positions, length) for name, positions in source.prefixes.items()}
        start = max((min(kept[name], self.prefixes[name]) for name in kept.keys() & self.prefixes.keys()), default=0)
        for target, origin in zip(self.cache.buffers, source.cache.buffers, strict=True):
            target[self.row, :, start:length] = origin[source.row, :, start:length]
        if length and length not in kept.values():
            name = next(_names)
            kept[name] = length
            source.prefixes = {**source.prefixes, name: length}
        self.length, self.prefixes = length, kept
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
