"""The one loop: searches of any kind, and of any number of threads, take part in the same rounds of a decoder."""

import itertools
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.decoder import Chunk, Decoder, Lease
from salmonrun.runtime.errors import BusyError, NotFiniteError
from salmonrun.runtime.finite import check_finite
from salmonrun.runtime.running import Group, Running
from salmonrun.runtime.schedule import Round, plan
from salmonrun.runtime.search import Hypothesis, Need, Search
from salmonrun.runtime.slot_queue import SlotQueue
from salmonrun.runtime.terms import POLL_S, WHENEVER, Terms

S = TypeVar("S")


def run_round(decoder: Decoder[S], searches: Sequence[Running[S]], number: int) -> Round:
    """What it is the turn of, in one pass of the decoder. An error is the own one of the search that causes it."""
    for search in searches:
        search.stop_if_over()
    shares = [(search, search.share()) for search in plan(searches, number)]
    steps = sum(len(chunks) for search, chunks in shares if search.is_step)
    prompts = sum(len(chunk.inputs) for search, chunks in shares if not search.is_step for chunk in chunks)
    report = Round(len(shares), steps, prompts)
    try:
        logits = decoder.forward([chunk for _, chunks in shares for chunk in chunks]) if shares else []
    except Exception as error:
        if len(shares) == 1:
            shares[0][0].fail(error)
        else:  # nothing was appended: each on its own, to see whose it is
            for search, _ in shares:
                run_round(decoder, [search], number)
        return report
    sent = first = 0
    try:
        for search, chunks in shares:
            search.served = number
            _hand_over(search, logits[first : first + len(chunks)])
            sent, first = sent + 1, first + len(chunks)
    except BaseException as error:  # interrupted: the slots of the others are ahead of what they know
        for search, _ in shares[sent:]:
            search.fail(error)
        raise
    return report


def _hand_over(search: Running[S], logits: Sequence[F32]) -> None:
    """Logits of any decoder go to their search here. Those that are no numbers end it, and nobody else's."""
    try:
        for rows in logits:
            check_finite(rows, "LLM")
    except NotFiniteError as error:
        search.fail(error)
    else:
        search.receive(logits)


def run_together(decoder: Decoder[S], searches: Sequence[Search[S]]) -> list[Hypothesis]:
    """The answers of searches that take rounds together."""
    running = [Running(search) for search in searches]
    for number in itertools.count():
        if all(search.done for search in running):
            break
        run_round(decoder, running, number)
    return [search.result() for search in running]


class Rounds(Generic[S]):
    """One decoder's rounds, for any number of threads: who may have slots, and who takes part when.

    There is no thread of its own: whoever waits, for a token or for slots, runs the next round, for everybody. A round
    is for all open searches, also for those whose next token nobody has asked for yet.
    """

    def __init__(self, decoder: Decoder[S]) -> None:
        self._decoder = decoder
        self._changed = threading.Condition()  # no call of the decoder while it is held: that would wait for a round
        self._open: list[Group[S]] = []
        self._in_round: list[Running[S]] = []
        self._runner: int | None = None  # the thread that runs a round
        self._number = 0  # of the next round
        self._slots = SlotQueue()
        self.watchers: list[Callable[[Round], object]] = []  # told of each round

    @property
    def open_searches(self) -> int:
        """Searches that have not ended."""
        return sum(not search.done for group in self._open for search in group.members)

    @property
    def waiting(self) -> int:
        """How many wait for slots."""
        return len(self._slots)

    def open(self, count: int, capacity: int, terms: Terms = WHENEVER, stays: bool = False) -> Lease[S]:
        """`count` slots with room for `capacity` positions each, as soon as there is memory for them.

        Args:
            count: of slots.
            capacity: positions that each may have.
            terms: on which they are waited for.
            stays: whether they are kept beyond the searches that they are given to: nobody is made to wait for those.

        Raises:
            BusyError: memory is full, and none will be given back by itself; or too many wait.
            CancelledEarlyError: cancelled meanwhile.
            CapacityError: they will never fit.
            DeadlineError: the deadline passed meanwhile.
        """
        with self._changed:
            place = self._slots.enter(terms)
        try:
            while True:
                self._wait(lambda: terms.cancelled or terms.expired or self._slots.may_try(place), POLL_S)
                terms.check("decoding")
                place.tried = self._slots.given_back
                try:
                    return self._counted(self._decoder.open(count, capacity), stays)
                except BusyError:
                    with self._changed:
                        if self._slots.hopeless(place):
                            raise
        finally:
            with self._changed:
                self._slots.leave(place)
                self._changed.notify_all()

    def tokens(
        self, search: Search[S], terms: Terms = WHENEVER, lease: Lease[S] | None = None
    ) -> Generator[int, None, Running[S]]:
        """The tokens of a search, as they come. Closing the generator ends the search."""
        with self.entered([search], terms, lease) as (running,):
            yield from self.follow(running)
            running.result()
            return running

    def run(
        self, searches: Sequence[Search[S]], terms: Terms = WHENEVER, lease: Lease[S] | None = None
    ) -> list[Hypothesis]:
        """The answers of some searches."""
        with self.entered(searches, terms, lease) as running:
            self._wait(lambda: all(search.done for search in running))
            return [search.result() for search in running]

    def append(self, chunk: Chunk[S], terms: Terms = WHENEVER) -> None:
        """Append to one slot; no logits are wanted."""
        self.run([_append(chunk)], terms)

    @contextmanager
    def entered(
        self, searches: Sequence[Search[S]], terms: Terms = WHENEVER, lease: Lease[S] | None = None
    ) -> Iterator[Sequence[Running[S]]]:
        """Until the context ends, searches take part in rounds, whether they are followed or not.

        Args:
            searches: their slots may be given back behind it.
            terms: of all of them.
            lease: of their slots; it is closed when the last of them has ended.
        """
        group = Group([Running(search, terms, self._number) for search in searches], lease)
        with self._changed:
            self._open.append(group)
        try:
            yield group.members
        finally:
            self._leave(group)

    def follow(self, running: Running[S]) -> Generator[int, None, None]:
        """The tokens of a search that takes part, as they come."""
        for count in itertools.count(1):
            self._wait(partial(running.has, count))
            if len(running.tokens) < count:
                return
            yield running.tokens[count - 1]

    def _leave(self, group: Group[S]) -> None:
        """Take part no longer; the slots may be given back then."""
        with self._changed:
            self._open = [one for one in self._open if one is not group]
            # The collector may close a generator in the middle of its own thread's round, which then goes on.
            while self._runner not in (None, threading.get_ident()) and any(s in self._in_round for s in group.members):
                self._changed.wait()

    def _wait(self, satisfied: Callable[[], bool], poll_s: float | None = None) -> None:
        """Until it is so; if nobody else runs a round, and there is one to run, run it."""
        while True:
            with self._changed:
                while not satisfied() and (self._runner is not None or all(group.done for group in self._open)):
                    self._changed.wait(poll_s)
                if satisfied():
                    return
                self._runner = threading.get_ident()
                groups = list(self._open)
                self._in_round = [search for group in groups for search in group.members if not search.done]
                self._number += 1
            try:
                report = run_round(self._decoder, self._in_round, self._number)
                for group in groups:
                    group.give_back()
            finally:
                with self._changed:
                    self._runner, self._in_round = None, []
                    self._open = [group for group in self._open if not group.done]
                    self._changed.notify_all()
            if report.searches:
                for watcher in self.watchers:
                    watcher(report)

    def _counted(self, lease: Lease[S], stays: bool) -> Lease[S]:
        """The same lease, of which it is known when it ends."""
        with self._changed:
            self._slots.ending += not stays

        def give_back(_: Sequence[S]) -> None:
            lease.close()
            with self._changed:
                self._slots.ending -= not stays
                self._slots.given_back += 1
                self._changed.notify_all()

        return Lease(lease.slots, give_back)


def _append(chunk: Chunk[S]) -> Search[S]:
    yield Need([chunk])
    return Hypothesis([], "stop", [])
