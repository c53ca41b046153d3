"""Turns of something that takes all cores: one at a time, streams first, nobody for ever behind."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from salmonrun.runtime.terms import POLL_S, Terms

PATIENCE = 8  # turns that later ones may have first, by their priority


@dataclass(eq=False)
class _Place:
    terms: Terms
    passed: int = 0  # turns that others had which came later


class Turns:
    """For any number of threads.

    Encoders run in the thread of who asks, next to the decoder's rounds. One at a time they take half of the cores'
    time from these at most, however many there are; and a stream's short block waits for the window that is being
    encoded, but for none that is waiting.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._places: list[_Place] = []  # in the order of their coming
        self._taken = False

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._places)

    @contextmanager
    def turn(self, terms: Terms, what: str) -> Iterator[bool]:
        """Wait for it, or not, as is told; it ends with the context.

        Raises:
            CancelledEarlyError: cancelled meanwhile.
            DeadlineError: the deadline passed meanwhile.
        """
        waited = self._take(_Place(terms), what)
        try:
            yield waited
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()

    def _take(self, place: _Place, what: str) -> bool:
        with self._changed:
            self._places.append(place)
            waited = self._taken
            try:
                while self._taken or self._first() is not place:
                    place.terms.check(what)
                    self._changed.wait(POLL_S)
                place.terms.check(what)
                self._taken = True
                for earlier in self._places[: self._places.index(place)]:
                    earlier.passed += 1
                return waited
            finally:
                self._places.remove(place)
                self._changed.notify_all()

    def _first(self) -> _Place:
        """Who has been patient enough; else by priority; among equals, who came first."""
        patient = [one for one in self._places if one.passed >= PATIENCE]
        return patient[0] if patient else min(self._places, key=lambda one: one.terms.priority)
