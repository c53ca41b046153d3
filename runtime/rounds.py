"""The one loop: searches of any kind, and of any number of threads, take part in the same rounds of a decoder."""

import itertools
import threading
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Generic, TypeVar

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.decoder import Chunk, Decoder
from salmonrun.runtime.search import Hypothesis, Need, Search

S = TypeVar("S")


class Running(Generic[S]):
    """A search on its way: what it needs next, the tokens it has and when it had them."""

    def __init__(self, search: Search[S], cancel: threading.Event | None = None) -> None:
        self._search = search
        self._cancel = cancel
        self.need: Need[S] | None = None  # None: it has come to its end
        self.hypothesis: Hypothesis | None = None
        self.error: BaseException | None = None
        self.tokens: list[int] = []
        self.token_at: list[float] = []  # time.perf_counter() of each
        self.prefilled_at: float | None = None  # time.perf_counter() of its first logits
        self._go_on(lambda: next(search))

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.need is None

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop."""
        return self._cancel is not None and self._cancel.is_set()

    def has(self, count: int) -> bool:
        """Whether there are so many tokens, or will never be."""
        return self.done or len(self.tokens) >= count

    def send(self, logits: Sequence[F32] | None) -> None:
        """Go on with the logits of its chunks, or end: None, or cancelled meanwhile."""
        if self.prefilled_at is None:
            self.prefilled_at = time.perf_counter()
        self._go_on(lambda: self._search.send(None if self.cancelled else logits))

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

    def _go_on(self, advance: Callable[[], Need[S]]) -> None:
        try:
            self.need = advance()
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


def run_round(decoder: Decoder[S], searches: Sequence[Running[S]]) -> None:
    """What all of them need, in one pass of the decoder. An error is the own one of the search that causes it."""
    for search in searches:
        if search.cancelled and not search.done:
            search.send(None)
    needs = [(search, search.need.chunks) for search in searches if search.need]
    try:
        logits = decoder.forward([chunk for _, chunks in needs for chunk in chunks]) if needs else []
    except Exception as error:
        if len(needs) == 1:
            needs[0][0].fail(error)
        else:  # nothing was appended: each on its own, to see whose it is
            for search, _ in needs:
                run_round(decoder, [search])
        return
    sent = first = 0
    try:
        for search, chunks in needs:
            search.send(logits[first : first + len(chunks)])
            sent, first = sent + 1, first + len(chunks)
    except BaseException as error:  # interrupted: the slots of the others are ahead of what they know
        for search, _ in needs[sent:]:
            search.fail(error)
        raise


def run_together(decoder: Decoder[S], searches: Sequence[Search[S]]) -> list[Hypothesis]:
    """The answers of searches that take every round together."""
    running = [Running(search) for search in searches]
    while not all(search.done for search in running):
        run_round(decoder, running)
    return [search.result() for search in running]


class Rounds(Generic[S]):
    """One decoder's rounds, for any number of threads.

    There is no thread of its own: whoever waits for a token runs the next round, for everybody. A round has the chunks
    of all open searches, also of those whose next token nobody has asked for yet.
    """

    def __init__(self, decoder: Decoder[S]) -> None:
        self._decoder = decoder
        self._changed = threading.Condition()
        self._open: list[Running[S]] = []
        self._in_round: list[Running[S]] = []
        self._runner: int | None = None  # the thread that runs a round

    def tokens(self, search: Search[S], cancel: threading.Event | None = None) -> Generator[int, None, Running[S]]:
        """The tokens of a search, as they come. Closing the generator ends the search."""
        running = Running(search, cancel)
        self._enter([running])
        try:
            for count in itertools.count(1):
                self._wait(partial(running.has, count))
                if len(running.tokens) < count:
                    break
                yield running.tokens[count - 1]
            running.result()
            return running
        finally:
            self._leave([running])

    def run(self, searches: Sequence[Search[S]], cancel: threading.Event | None = None) -> list[Hypothesis]:
        """The answers of some searches."""
        running = [Running(search, cancel) for search in searches]
        self._enter(running)
        try:
            self._wait(lambda: all(search.done for search in running))
        finally:
            self._leave(running)
        return [search.result() for search in running]

    def append(self, chunk: Chunk[S]) -> None:
        """Append to one slot; no logits are wanted."""
        self.run([_append(chunk)])

    def _enter(self, searches: list[Running[S]]) -> None:
        with self._changed:
            self._open += searches

    def _leave(self, searches: list[Running[S]]) -> None:
        """Take part no longer; the slots may be given back then."""
        with self._changed:
            self._open = [search for search in self._open if search not in searches]
            # The collector may close a generator in the middle of its own thread's round, which then goes on.
            while self._runner not in (None, threading.get_ident()) and any(s in self._in_round for s in searches):
                self._changed.wait()

    def _wait(self, satisfied: Callable[[], bool]) -> None:
        """Until it is so; if nobody else runs a round, run them."""
        while True:
            with self._changed:
                while self._runner is not None and not satisfied():
                    self._changed.wait()
                if satisfied():
                    return
                self._runner = threading.get_ident()
                self._open = [search for search in self._open if not search.done]
                self._in_round = list(self._open)
            try:
                run_round(self._decoder, self._in_round)
            finally:
                with self._changed:
                    self._runner, self._in_round = None, []
                    self._changed.notify_all()


def _append(chunk: Chunk[S]) -> Search[S]:
    yield Need([chunk])
    return Hypothesis([], "stop", [])
