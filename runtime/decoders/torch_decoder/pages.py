"""Which pages of a pool hold which sequence: sequences grow page by page, and share pages until one of them writes."""

from collections import Counter
from dataclasses import dataclass, field

from salmonrun.runtime.errors import ClosedError

PAGE = 256  # positions; flash-attn takes multiples of 256
SCRATCH = 0  # a page that belongs to nobody: what fills a batch up writes there


@dataclass(eq=False)
class PagedSlot:
    """One sequence."""

    capacity: int  # positions it may have
    length: int = 0  # positions it has
    pages: list[int] = field(default_factory=list, repr=False)
    closed: bool = False

    def check_open(self) -> None:
        """Refuse a slot whose pages may be somebody else's by now.

        Raises:
            ClosedError: it was given back.
        """
        if self.closed:
            raise ClosedError("this sequence was given back: use it inside the `with` block that opened it")

    def place(self, position: int) -> int:
        """The row of the pool that a position lies in."""
        return self.pages[position // PAGE] * PAGE + position % PAGE


@dataclass(frozen=True)
class Changes:
    """What must happen to a pool before slots are written to."""

    cleared: list[int]  # pages that are new to a slot: what others left there must not be read
    copied: list[tuple[int, int]]  # from a page that others have, too, to one's own


class PageTable:
    """Hands out the pages 1 to `count`. Who opens slots sees to it that all of them together never need more."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count, SCRATCH, -1))
        self._users: Counter[int] = Counter()

    @property
    def free(self) -> int:
        """Pages that nobody has."""
        return len(self._free)

    def grow(self, slot: PagedSlot, end: int) -> Changes:
        """Give a slot pages of its own for the positions from its length to before `end`."""
        changes = Changes([], [])
        for index in range(slot.length // PAGE, pages_of(end)):
            if index == len(slot.pages):
                slot.pages.append(self._take())
                changes.cleared.append(slot.pages[index])
            elif self._users[slot.pages[index]] > 1:
                shared, slot.pages[index] = slot.pages[index], self._take()
                self._users[shared] -= 1
                changes.copied.append((shared, slot.pages[index]))
        return changes

    def truncate(self, slot: PagedSlot, length: int) -> None:
        """Forget the positions from `length` on.

        Raises:
            ValueError: it has not so many.
        """
        if not 0 <= length <= slot.length:
            raise ValueError(f"cannot truncate {slot.length} positions to {length}")
        self._drop(slot.pages[pages_of(length) :])
        del slot.pages[pages_of(length) :]
        slot.length = length

    def share(self, source: PagedSlot, target: PagedSlot, length: int) -> None:
        """Make `target` the first `length` positions of `source`, by having the same pages.

        Raises:
            ValueError: the one has not so many, or the other no room for them.
        """
        if not 0 <= length <= min(source.length, target.capacity):
            raise ValueError(f"cannot copy {length} positions of {source} into {target}")
        pages = source.pages[: pages_of(length)]
        self._users.update(pages)
        self._drop(target.pages)
        target.pages, target.length = pages, length

    def close(self, slot: PagedSlot) -> None:
        """Take a slot's pages back."""
        self._drop(slot.pages)
        slot.pages, slot.closed = [], True

    def _take(self) -> int:
        page = self._free.pop()
        self._users[page] = 1
        return page

    def _drop(self, pages: list[int]) -> None:
        for page in pages:
            self._users[page] -= 1
            if not self._users[page]:
                self._free.append(page)


def pages_of(positions: int) -> int:
    """Pages that so many positions take."""
    return -(-positions // PAGE)
