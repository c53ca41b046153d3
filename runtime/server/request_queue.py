"""Who is answered now, who waits, who is refused: a bounded queue in front of the engine."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from salmonrun.runtime.server.api_error import ApiError


class RequestQueue:
    """At most `max_running` at once, first come first served; at most `max_waiting` behind them.

    Args:
        unhurried: waited for before one begins: streams that are late come first.
    """

    def __init__(self, max_running: int, max_waiting: int, unhurried: Callable[[], Awaitable[None]]) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._unhurried = unhurried
        self._free = asyncio.Semaphore(max_running)
        self.running = 0
        self.waiting = 0
        self._mean_s = 1.0  # that a request took lately

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for it; the request is running until the context ends.

        Raises:
            ApiError: 429, so many are waiting already.
        """
        if self._free.locked() and self.waiting >= self._max_waiting:
            raise ApiError(
                429,
                "queue_full",
                f"{self.running} requests are being answered and {self.waiting} wait, the most: ask again later",
                retry_after_s=self._wait_s(),
            )
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            await self._unhurried()
            yield
        finally:
            self.running -= 1
            self._free.release()
            self._mean_s += 0.2 * (loop.time() - started - self._mean_s)

    def _wait_s(self) -> int:
        """Until one that comes now might begin."""
        return max(1, math.ceil(self._mean_s * (self.waiting + 1) / self._max_running))
