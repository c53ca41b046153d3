"""KV slots against lists: whatever is appended, forgotten and copied, a slot holds what its list holds."""

import random
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from salmonrun.runtime.decoders.kv_cache import KVCache, KVPool, Slot

LAYERS, HEADS, HEAD_DIM = 2, 2, 3
CAPACITIES = (6, 10)  # of two caches of the same model, with two rows each
INDEX = st.integers(0, 3)  # of a slot
SHARE = st.sampled_from([0.0, 0.5, 0.8, 1.0])  # of what there is


def make_slots(rows: int = 3, capacity: int = 8) -> list[Slot]:
    """All rows of a cache."""
    cache = KVCache(LAYERS, rows, HEADS, capacity, HEAD_DIM, np.float32)
    for buffer in cache.buffers:
        buffer[:] = np.nan
    return [Slot(cache, row, capacity) for row in range(rows)]


def append(slot: Slot, values: list[float]) -> None:
    """Write as the decoder does: into the buffers, then the length. Every buffer gets numbers of its own."""
    for number, buffer in enumerate(slot.cache.buffers):
        for offset, value in enumerate(values):
            buffer[slot.row, :, slot.length + offset] = value + number / 16
    slot.length += len(values)


def content(slot: Slot) -> list[float]:
    """The values of a slot, after checking that all buffers have them."""
    values = slot.cache.keys[0][slot.row, 0, : slot.length, 0]
    for number, buffer in enumerate(slot.cache.buffers):
        expected = np.broadcast_to((values + number / 16)[None, :, None], (HEADS, slot.length, HEAD_DIM))
        np.testing.assert_array_equal(buffer[slot.row, :, : slot.length], expected)
    return values.tolist()


class SlotsAreLists(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.slots = [slot for capacity in CAPACITIES for slot in make_slots(2, capacity)]
        self.lists: list[list[float]] = [[] for _ in self.slots]
        self.written = 0

    @rule(index=INDEX, count=st.integers(0, 4))
    def append(self, index: int, count: int) -> None:
        values = [float(self.written + i) for i in range(min(count, self.slots[index].room))]
        self.written += len(values)
        append(self.slots[index], values)
        self.lists[index] += values

    @precondition(lambda self: any(self.lists))
    @rule(index=INDEX, share=SHARE)
    def truncate(self, index: int, share: float) -> None:
        length = round(share * len(self.lists[index]))
        self.slots[index].truncate(length)
        del self.lists[index][length:]

    @rule(source=INDEX, into=INDEX, share=SHARE)
    def copy(self, source: int, into: int, share: float) -> None:
        length = round(share * min(len(self.lists[source]), self.slots[into].capacity))
        copied = self.slots[into].copy_from(self.slots[source], length)
        assert 0 <= copied <= length
        self.lists[into] = self.lists[source][:length]

    @rule(source=INDEX, into=INDEX)
    def copy_twice(self, source: int, into: int) -> None:
        """Copying again copies nothing."""
        length = min(len(self.lists[source]), self.slots[into].capacity)
        self.slots[into].copy_from(self.slots[source], length)
        assert self.slots[into].copy_from(self.slots[source], length) == 0
        self.lists[into] = self.lists[source][:length]

    @invariant()
    def same(self) -> None:
        assert [content(slot) for slot in self.slots] == self.lists


TestSlotsAreLists = SlotsAreLists.TestCase
TestSlotsAreLists.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_a_shared_prompt_is_copied_once() -> None:
    first, second, _ = make_slots()
    append(first, [1, 2, 3, 4])
    assert second.copy_from(first, 4) == 4
    append(first, [5])
    append(second, [6, 7])
    assert second.copy_from(first, 5) == 1
    assert content(second) == [1, 2, 3, 4, 5]
    append(first, [8, 9])
    assert first.copy_from(second, 4) == 0
    assert content(first) == [1, 2, 3, 4]


def test_a_rewritten_prompt_is_copied_again() -> None:
    first, second, _ = make_slots()
    append(first, [1, 2, 3, 4])
    second.copy_from(first, 4)
    first.truncate(2)
    append(first, [5, 6])
    assert second.copy_from(first, 4) == 2
    assert content(second) == [1, 2, 5, 6]


def test_a_rewritten_copy_is_copied_again() -> None:
    first, second, _ = make_slots()
    append(first, [1, 2, 3, 4])
    second.copy_from(first, 4)
    second.truncate(1)
    append(second, [5, 6, 7])
    assert second.copy_from(first, 4) == 3
    assert content(second) == [1, 2, 3, 4]


def test_the_end_of_a_partial_copy_is_its_own() -> None:
    first, second, third = make_slots()
    append(first, [1, 2, 3, 4])
    third.copy_from(first, 4)
    second.copy_from(first, 2)
    append(second, [5, 6])
    assert second.copy_from(first, 4) == 2
    assert content(second) == [1, 2, 3, 4]


def test_copying_a_slot_to_itself_truncates() -> None:
    slot, *_ = make_slots()
    append(slot, [1, 2, 3])
    assert slot.copy_from(slot, 2) == 0
    assert content(slot) == [1, 2]


def test_room() -> None:
    (slot,) = make_slots(rows=1, capacity=8)
    append(slot, [1, 2, 3])
    assert slot.room == 5


@pytest.mark.parametrize("length", [-1, 4])
def test_truncating_to_what_is_not_there_is_an_error(length: int) -> None:
    slot, *_ = make_slots()
    append(slot, [1, 2, 3])
    with pytest.raises(ValueError, match=f"cannot truncate 3 positions to {length}"):
        slot.truncate(length)


@pytest.mark.parametrize("length", [-1, 4])
def test_copying_what_is_not_there_is_an_error(length: int) -> None:
    first, second, _ = make_slots()
    append(first, [1, 2, 3])
    with pytest.raises(ValueError, match=f"cannot copy {length} positions"):
        second.copy_from(first, length)


def test_copying_into_a_smaller_cache_is_an_error() -> None:
    (source,), (target,) = make_slots(1, capacity=8), make_slots(1, capacity=3)
    append(source, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="cannot copy 4 positions"):
        target.copy_from(source, 4)


# The pool


def make_pool(max_length: int = 1000) -> KVPool:
    return KVPool(LAYERS, HEADS, HEAD_DIM, np.float32, max_length)


def test_requests_of_different_lengths_meet_in_one_cache() -> None:
    pool = make_pool()
    leases = [pool.lease(1, capacity) for capacity in (255, 10, 100)]
    assert len({id(lease.slots[0].cache) for lease in leases}) == 1
    assert [lease.slots[0].row for lease in leases] == [0, 1, 2]
    assert [lease.slots[0].room for lease in leases] == [255, 10, 100]


def test_a_longer_request_has_a_cache_of_its_own() -> None:
    pool = make_pool()
    short, long, longest = pool.lease(1, 255), pool.lease(1, 256), pool.lease(1, 1000)
    assert [lease.slots[0].cache.capacity for lease in (short, long, longest)] == [256, 512, 1001]
    assert pool.lease(1, 300).slots[0].cache is long.slots[0].cache


def test_slots_of_a_lease_are_neighbours() -> None:
    pool = make_pool()
    first, _, third = pool.lease(2, 10), pool.lease(3, 10), pool.lease(2, 10)
    first.close()
    third.close()
    assert [slot.row for slot in pool.lease(3, 10).slots] == [5, 6, 7]
    assert [slot.row for slot in pool.lease(2, 10).slots] == [0, 1]
    more = pool.lease(12, 10)
    assert more.slots[0].cache is not first.slots[0].cache
    assert len(more.slots[0].cache.rows) == 12


def test_a_cache_goes_with_its_last_lease() -> None:
    pool = make_pool()
    first, second = pool.lease(1, 10), pool.lease(2, 10)
    first.close()
    assert len(pool.caches) == 1
    second.close()
    assert pool.caches == []
    assert first.closed
    assert all(slot.closed for slot in (*first.slots, *second.slots))


def test_the_last_cache_given_back_serves_the_next_lease_of_its_size() -> None:
    pool = make_pool()
    with pool.lease(1, 10) as (slot,):
        kept = slot.cache
    with pool.lease(3, 20) as slots, pool.lease(8, 10) as others:
        assert {slot.cache for slot in slots} == {kept}
        assert {slot.cache for slot in others}.isdisjoint({kept})
    gone = weakref.ref(kept)
    del kept, slot, slots, others
    with pool.lease(1, 600) as (large,):
        assert large.cache.capacity > 600
        assert gone() is None  # it made room
    with pool.lease(12, 600) as many:
        assert len(many[0].cache.rows) == 12


def test_leases_of_many_threads_never_share_a_row() -> None:
    pool, pick = make_pool(), random.Random(0)
    plans = [[(pick.randint(1, 5), pick.choice((10, 300))) for _ in range(100)] for _ in range(8)]

    def run(plan: list[tuple[int, int]]) -> None:
        for count, capacity in plan:
            with pool.lease(count, capacity) as slots:
                for slot in slots:
                    assert slot.cache.rows[slot.row] is slot

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(run, plans))
    assert pool.caches == []
