"""A search on its way: what it needs next, what it has, and when it last had a place in a round."""

import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.decoder import Chunk, Lease
from salmonrun.runtime.errors import DeadlineError
from salmonrun.runtime.search import Hypothesis, Need, Search
from salmonrun.runtime.terms import WHENEVER, Terms

S = TypeVar("S")
# Positions of a chunk that a round takes at most. It is cut there whoever else is in the round, so that a decoder whose
# last bits depend on the cut finds the same in any company; and our kernels take as many rows at a time.
PIECE = 128


class Running(Generic[S]):
    """One search.

    Args:
        search: it is begun at once.
        terms: on which it takes part.
        joined: the number of the round that it may take part in first.
    """

    def __init__(self, search: Search[S], terms: Terms = WHENEVER, joined: int = 0) -> None:
        self._search = search
        self.terms = terms
        self.served = joined  # the round that it last had a place in
        self.need: Need[S] | None = None  # None: it has come to its end
        self.is_step = False  # whether it needs one position of each slot: it is in the middle of an answer
        self.hypothesis: Hypothesis | None = None
        self.error: BaseException | None = None
        self.tokens: list[int] = []
        self.token_at: list[float] = []  # time.perf_counter() of each
        self.prefilled_at: float | None = None  # time.perf_counter() of its first logits
        self._appended = 0  # positions of its chunk that are in the slot, of one that is cut
        self._logits: list[F32] = []  # of these
        self._go_on(lambda: next(search))

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.need is None

    def has(self, count: int) -> bool:
        """Whether there are so many tokens, or will never be."""
        return self.done or len(self.tokens) >= count

    def share(self) -> Sequence[Chunk[S]]:
        """What its next round appends: what it needs, of a long chunk a piece. Several chunks stay together."""
        assert self.need
        chunk = self.need.chunks[0]
        if self.is_step or len(self.need.chunks) > 1 or len(chunk.inputs) <= PIECE:
            return self.need.chunks
        return [_piece(chunk, self._appended, min(self._appended + PIECE, len(chunk.inputs)))]

    def receive(self, logits: Sequence[F32]) -> None:
        """Go on with the logits of its share."""
        assert self.need
        chunk = self.need.chunks[0]
        if not self.is_step and len(self.need.chunks) == 1 and len(chunk.inputs) > PIECE:
            self._appended += min(PIECE, len(chunk.inputs) - self._appended)
            self._logits += [rows for rows in logits if len(rows)]
            if self._appended < len(chunk.inputs) and not self.terms.cancelled:
                return
            logits = [np.concatenate(self._logits)] if self._logits else logits
            self._appended, self._logits = 0, []
        if self.prefilled_at is None:
            self.prefilled_at = time.perf_counter()
        self._send(None if self.terms.cancelled else logits)

    def stop_if_over(self) -> None:
        """End it if it is cancelled, with what it has; or if its deadline has passed, with an error."""
        if self.done:
            return
        if self.terms.cancelled:
            self._send(None)
        elif self.terms.expired:
            count = len(self.tokens)
            what = f"the deadline passed after {count} tokens of the answer: give it longer, or lower max_new_tokens"
            self.fail(DeadlineError(what))

    def fail(self, error: BaseException) -> None:
        """End with an error, which `result` raises."""
        self.need, self.error = None, error
        self._search.close()

    def result(self) -> Hypothesis:
        """What it has come to."""
        if self.error:
            raise self.error
        assert self.hypothesis
        return self.hypothesis

    def _send(self, logits: Sequence[F32] | None) -> None:
        self._go_on(lambda: self._search.send(logits))

    def _go_on(self, advance: Callable[[], Need[S]]) -> None:
        try:
            self.need = advance()
            self.is_step = all(len(chunk.inputs) == 1 for chunk in self.need.chunks)
            known = self.need.tokens
        except StopIteration as end:
            self.need, self.hypothesis = None, end.value
            known = end.value.tokens
        except Exception as error:
            self.fail(error)
            return
        new = known[len(self.tokens) :]
        self.tokens += new
        self.token_at += [time.perf_counter()] * len(new)


class Group(Generic[S]):
    """Searches that belong together, and the slots that are theirs: these are given back when the last has ended."""

    def __init__(self, members: Sequence[Running[S]], lease: Lease[S] | None) -> None:
        self.members = members
        self._lease = lease

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return all(member.done for member in self.members)

    def give_back(self) -> None:
        """Its slots, if all have ended. Who waits for them need not wait for who reads the answer."""
        if self._lease and self.done:
            self._lease.close()


def _piece(chunk: Chunk[S], first: int, end: int) -> Chunk[S]:
    """The positions from `first` to before `end`; the slot's beginning is given to it with the first of them."""
    wanted = max(0, end - max(first, len(chunk.inputs) - chunk.wanted))
    keep, source = (None, None) if first else (chunk.keep, chunk.source)
    return Chunk(chunk.slot, chunk.inputs[first:end], wanted, keep, source)
