"""Who is answered now, who waits, who is refused: a bounded queue in front of the engine."""

import asyncio
import heapq
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from salmonrun.runtime.server.api_error import ApiError


class RequestQueue:
    """At most `max_running` at once, by priority, first come first served; at most `max_waiting` behind them.

    Args:
        unhurried: waited for before one begins: streams that are late come first.
    """

    def __init__(self, max_running: int, max_waiting: int, unhurried: Callable[[], Awaitable[None]]) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._unhurried = unhurried
        self._places: list[tuple[int, int, asyncio.Future[None]]] = []  # priority, number, set when it is its turn
        self._number = 0
        self.running = 0
        self._mean_s = 1.0  # that a request took lately

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._places)

    @asynccontextmanager
    async def turn(self, priority: int = 0) -> AsyncIterator[None]:
        """Wait for it; the request is running until the context ends.

        Raises:
            ApiError: 429, so many are waiting already.
        """
        if self.running >= self._max_running and self.waiting >= self._max_waiting:
            raise ApiError(
                429,
                "queue_full",
                f"{self.running} requests are being answered and {self.waiting} wait, the most: ask again later",
                retry_after_s=self._wait_s(),
            )
        await self._begin(priority)
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            await self._unhurried()
            yield
        finally:
            self._end()
            self._mean_s += 0.2 * (loop.time() - started - self._mean_s)

    async def _begin(self, priority: int) -> None:
        """Count as running, when it is its turn."""
        if self.running < self._max_running:
            self.running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._number += 1
        place = (priority, self._number, turn)
        heapq.heappush(self._places, place)
        try:
            await turn
        except asyncio.CancelledError:
            if place in self._places:
                self._places.remove(place)
                heapq.heapify(self._places)
            elif not turn.cancelled():  # it had just become its turn
                self._end()
            raise

    def _end(self) -> None:
        """Leave the turn to who is next."""
        self.running -= 1
        while self._places:
            _, _, turn = heapq.heappop(self._places)
            if not turn.done():  # else it was cancelled just now
                self.running += 1
                turn.set_result(None)
                return

    def _wait_s(self) -> int:
        """Until one that comes now might begin."""
        return max(1, math.ceil(self._mean_s * (self.waiting + 1) / self._max_running))
