"""KV slots against lists: whatever is appended, forgotten and copied, a slot holds what its list holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from salmonrun.runtime.decoders.kv_cache import KVCache, Slot, contiguous_runs

LAYERS, HEADS, HEAD_DIM = 2, 2, 3
CAPACITIES = (6, 10)  # of two caches of the same model, with two rows each
INDEX = st.integers(0, 3)  # of a slot
SHARE = st.sampled_from([0.0, 0.5, 0.8, 1.0])  # of what there is


def make_cache(rows: int = 3, capacity: int = 8) -> KVCache:
    return KVCache(LAYERS, rows, HEADS, capacity, HEAD_DIM, np.float32)


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
        caches = [make_cache(2, capacity) for capacity in CAPACITIES]
        for cache in caches:
            for buffer in cache.buffers:
                buffer[:] = np.nan
        self.slots = [slot for cache in caches for slot in cache.slots]
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
        length = round(share * min(len(self.lists[source]), self.slots[into].cache.capacity))
        copied = self.slots[into].copy_from(self.slots[source], length)
        assert 0 <= copied <= length
        self.lists[into] = self.lists[source][:length]

    @rule(source=INDEX, into=INDEX)
    def copy_twice(self, source: int, into: int) -> None:
        """Copying again copies nothing."""
        length = min(len(self.lists[source]), self.slots[into].cache.capacity)
        self.slots[into].copy_from(self.slots[source], length)
        assert self.slots[into].copy_from(self.slots[source], length) == 0
        self.lists[into] = self.lists[source][:length]

    @invariant()
    def same(self) -> None:
        assert [content(slot) for slot in self.slots] == self.lists


TestSlotsAreLists = SlotsAreLists.TestCase
TestSlotsAreLists.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_a_shared_prompt_is_copied_once() -> None:
    first, second, _ = make_cache().slots
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
    first, second, _ = make_cache().slots
    append(first, [1, 2, 3, 4])
    second.copy_from(first, 4)
    first.truncate(2)
    append(first, [5, 6])
    assert second.copy_from(first, 4) == 2
    assert content(second) == [1, 2, 5, 6]


def test_a_rewritten_copy_is_copied_again() -> None:
    first, second, _ = make_cache().slots
    append(first, [1, 2, 3, 4])
    second.copy_from(first, 4)
    second.truncate(1)
    append(second, [5, 6, 7])
    assert second.copy_from(first, 4) == 3
    assert content(second) == [1, 2, 3, 4]


def test_the_end_of_a_partial_copy_is_its_own() -> None:
    first, second, third = make_cache().slots
    append(first, [1, 2, 3, 4])
    third.copy_from(first, 4)
    second.copy_from(first, 2)
    append(second, [5, 6])
    assert second.copy_from(first, 4) == 2
    assert content(second) == [1, 2, 3, 4]


def test_copying_a_slot_to_itself_truncates() -> None:
    slot, *_ = make_cache().slots
    append(slot, [1, 2, 3])
    assert slot.copy_from(slot, 2) == 0
    assert content(slot) == [1, 2]


def test_room() -> None:
    cache = make_cache(rows=1, capacity=8)
    append(cache.slots[0], [1, 2, 3])
    assert cache.slots[0].room == 5


@pytest.mark.parametrize("length", [-1, 4])
def test_truncating_to_what_is_not_there_is_an_error(length: int) -> None:
    slot, *_ = make_cache().slots
    append(slot, [1, 2, 3])
    with pytest.raises(ValueError, match=f"cannot truncate 3 positions to {length}"):
        slot.truncate(length)


@pytest.mark.parametrize("length", [-1, 4])
def test_copying_what_is_not_there_is_an_error(length: int) -> None:
    first, second, _ = make_cache().slots
    append(first, [1, 2, 3])
    with pytest.raises(ValueError, match=f"cannot copy {length} positions"):
        second.copy_from(first, length)


def test_copying_into_a_smaller_cache_is_an_error() -> None:
    (source,), (target,) = make_cache(1, capacity=8).slots, make_cache(1, capacity=3).slots
    append(source, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="cannot copy 4 positions"):
        target.copy_from(source, 4)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), unique=True))
def test_contiguous_runs_cover_every_slot_once(places: list[tuple[int, int]]) -> None:
    caches = [make_cache(rows=5, capacity=1) for _ in range(3)]
    slots = [caches[cache].slots[row] for cache, row in places]
    runs = contiguous_runs(slots)
    found = {}
    for cache, first, end, members in runs:
        assert len(members) == end - first > 0
        for row, member in zip(range(first, end), members, strict=True):
            assert slots[member] is cache.slots[row]
            found[int(member)] = row
    assert sorted(found) == list(range(len(slots)))
    borders = [(id(cache), first) for cache, first, _, _ in runs]
    assert not any((id(cache), end) in borders for cache, _, end, _ in runs)  # no two runs could have been one
