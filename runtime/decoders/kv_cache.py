"""KV buffers: a pool of sequences that grow in place, share prefixes and roll back."""

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from salmonrun.runtime.arrays import Array
from salmonrun.runtime.decoder import Lease
from salmonrun.runtime.errors import ClosedError

ROWS = 8  # of a cache, at least
SMALLEST = 256  # positions of a row

_names = itertools.count()


@dataclass(frozen=True, eq=False)
class Rows:
    """Neighbouring rows of a cache: one object for as long as the cache lives, for others to keep things by."""

    keys: list[Array]  # of each layer [rows, kv_heads, capacity, head_dim]
    values: list[Array]


class KVCache:
    """Keys and values of `rows` sequences, each with room for `capacity` positions.

    The buffers are reserved, not filled: memory is used as positions are written.
    """

    def __init__(self, layers: int, rows: int, kv_heads: int, capacity: int, head_dim: int, dtype: Any) -> None:
        shape = (rows, kv_heads, capacity, head_dim)
        self.capacity = capacity
        self.keys = [np.empty(shape, dtype) for _ in range(layers)]
        self.values = [np.empty(shape, dtype) for _ in range(layers)]
        self.rows: list[Slot | None] = [None] * rows  # whose each is
        self._views: dict[tuple[int, int], Rows] = {}

    @property
    def buffers(self) -> list[Array]:
        """All keys, then all values, each [rows, kv_heads, capacity, head_dim]."""
        return [*self.keys, *self.values]

    def view(self, first: int, end: int) -> Rows:
        """The rows from `first` to before `end`."""
        if (first, end) not in self._views:
            parts = ([buffer[first:end] for buffer in buffers] for buffers in (self.keys, self.values))
            self._views[first, end] = Rows(*parts)
        return self._views[first, end]

    def free_run(self, count: int) -> int | None:
        """The first of so many free rows side by side; None if there are none."""
        for first in range(len(self.rows) - count + 1):
            if not any(self.rows[first : first + count]):
                return first
        return None

    def past(self, row: int) -> int:
        """Positions that the sequence in a row has; 0 in a free one."""
        slot = self.rows[row]
        return slot.length if slot else 0


@dataclass(eq=False)
class Slot:
    """One sequence's row in a cache."""

    cache: KVCache = field(repr=False)
    row: int
    capacity: int  # positions it may have
    length: int = 0  # valid positions
    closed: bool = False
    # Contents this slot begins with: name -> how many positions of it. Two slots that know the same name hold the same
    # in the positions that both have of it.
    prefixes: dict[int, int] = field(default_factory=dict, repr=False)

    @property
    def room(self) -> int:
        """Positions that can still be appended."""
        return self.capacity - self.length

    def check_open(self) -> None:
        """Refuse a slot whose row may be somebody else's by now.

        Raises:
            ClosedError: it was given back.
        """
        if self.closed:
            raise ClosedError("this sequence was given back: use it inside the `with` block that opened it")

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
        source.check_open()
        if not 0 <= length <= min(source.length, self.capacity):
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


class KVPool:
    """Caches whose rows are leased to requests: sequences in one cache can take a step together.

    A cache is made when no row is free in those there are. Its capacity is a power of two, so that requests of
    different lengths meet; reserved memory that nobody writes to costs nothing. The last one whose rows are all given
    back is kept for the next request, whose first pass would touch new memory otherwise. It goes before one is made.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, dtype: Any, max_length: int) -> None:
        self._layers = layers
        self._kv_heads = kv_heads
        self._head_dim = head_dim
        self._dtype = dtype
        self._max_length = max_length
        self._lock = threading.RLock()  # the collector may close a lease while this thread opens another
        self.caches: list[KVCache] = []  # in use
        self._spare: KVCache | None = None

    @property
    def bytes(self) -> int:
        """Reserved by leases, without the spare cache; what nobody has written to takes no memory."""
        with self._lock:
            return sum(buffer.nbytes for cache in self.caches for buffer in cache.buffers)

    def lease(self, count: int, capacity: int) -> Lease[Slot]:
        """`count` neighbouring rows with room for `capacity` positions each."""
        with self._lock:
            cache, first = self._find(count, capacity + 1)  # one to spare: see `OnnxDecoder`
            slots = [Slot(cache, first + i, capacity) for i in range(count)]
            cache.rows[first : first + count] = slots
        return Lease(slots, self._give_back)

    def _find(self, count: int, positions: int) -> tuple[KVCache, int]:
        for cache in self.caches:
            first = cache.free_run(count)
            if first is not None and cache.capacity >= positions:
                return cache, first
        cache = self._new(count, positions)
        self.caches.append(cache)
        self.caches.sort(key=lambda one: one.capacity)  # small requests do not take the rows of large ones
        return cache, 0

    def _new(self, rows: int, positions: int) -> KVCache:
        capacity = min(max(SMALLEST, 1 << (positions - 1).bit_length()), self._max_length + 1)
        spare, self._spare = self._spare, None
        if spare and spare.capacity == capacity and len(spare.rows) >= rows:
            return spare
        del spare  # before memory is asked for again
        return KVCache(self._layers, max(ROWS, rows), self._kv_heads, capacity, self._head_dim, self._dtype)

    def _give_back(self, slots: Sequence[Slot]) -> None:
        with self._lock:
            for slot in slots:
                slot.closed = True
                slot.cache.rows[slot.row] = None
            for cache in {slot.cache for slot in slots}:
                if not any(cache.rows):
                    self.caches.remove(cache)
                    self._spare = cache
