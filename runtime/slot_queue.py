"""Who waits for slots while memory is full, in order, and whether waiting helps."""

from bisect import insort
from dataclasses import dataclass

from salmonrun.runtime.errors import BusyError
from salmonrun.runtime.terms import Terms

LONGEST = 1000  # that may wait at once


@dataclass(eq=False)
class Place:
    """In the queue."""

    terms: Terms
    tried: int | None = None  # the times that slots had been given back when it last asked for some


class SlotQueue:
    """By priority, first come first served: nobody overtakes a large request, which would never have its turn.

    Waiting helps while there are leases that end by themselves, with the searches that they are for. Each of these has
    all the memory it may ever need, so that it comes to its end. Others (recordings that are kept, live streams) are
    given back when their owner likes, who may be the one that waits. It is the owner's task to lock.
    """

    def __init__(self) -> None:
        self._places: list[Place] = []
        self.ending = 0  # leases that end by themselves
        self.given_back = 0  # how often slots were

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, terms: Terms) -> Place:
        """Behind all of the same priority.

        Raises:
            BusyError: too many wait.
        """
        if len(self._places) >= LONGEST:
            raise BusyError(f"{LONGEST} requests wait for memory for keys and values, the most: ask again later")
        place = Place(terms)
        insort(self._places, place, key=lambda one: one.terms.priority)
        return place

    def leave(self, place: Place) -> None:
        """It has its slots, or goes without."""
        self._places.remove(place)

    def may_try(self, place: Place) -> bool:
        """Whether it is first, and something has changed since it last tried."""
        return self._places[0] is place and place.tried != self.given_back

    def hopeless(self, place: Place) -> bool:
        """Whether all is as it was when it tried, and nothing will be given back by itself."""
        return place.tried == self.given_back and self.ending == 0
