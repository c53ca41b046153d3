"""Which live streams are let in: as many as measurably keep up with real time, and none while one of them is late."""

import asyncio
import math
import time

from salmonrun.runtime.server.api_error import ApiError

# Of real time that streams may take: what is left is for requests beside them, and for speech that is harder to decode.
SHARE = 0.8
LATE_S = 1.0  # behind real time, from which a stream counts as late
LOST_S = 30.0  # behind real time, from which a stream is given up, so that the others are kept
RETRY_S = 10


class Pace:
    """How far one stream is behind real time.

    Audio is due when it comes, but no sooner than it would have been spoken: of a file that is sent at once, each
    second is due a second after the one before. After a pause of the client, time begins anew.
    """

    def __init__(self) -> None:
        self._end = -math.inf  # when what has come is due to its last sample
        self._waiting_s = 0.0  # seconds of it that were not heard yet

    def arrived(self, seconds: float, now: float) -> None:
        """So much audio has come."""
        self._end = max(now, self._end) + seconds
        self._waiting_s += seconds

    def heard(self, seconds: float, now: float) -> float:
        """So much of it was heard: how late."""
        lag_s = self.lag_s(now)
        self._waiting_s = max(0.0, self._waiting_s - seconds)
        return lag_s

    def forgotten(self) -> None:
        """What was not heard yet never will be."""
        self._waiting_s = 0.0

    def lag_s(self, now: float) -> float:
        """Since when the first sample that was not heard yet is due; 0 if none is."""
        return max(0.0, now - (self._end - self._waiting_s)) if self._waiting_s > 1e-6 else 0.0


class StreamAdmission:
    """The live streams that are open.

    Args:
        capacity: how many there may be.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._open: set[Pace] = set()

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._open)

    @property
    def lag_s(self) -> float:
        """Of the one that is furthest behind real time."""
        now = time.monotonic()
        return max((pace.lag_s(now) for pace in self._open), default=0.0)

    def enter(self) -> Pace:
        """Let one more in.

        Raises:
            ApiError: 429, it or another one would fall behind.
        """
        if self.open >= self.capacity:
            raise _refusal(f"{self.open} live streams are open, of {self.capacity} that keep up with real time")
        if (lag_s := self.lag_s) > LATE_S:
            raise _refusal(f"a live stream is {lag_s:.1f} s behind real time, so no more are let in")
        pace = Pace()
        self._open.add(pace)
        return pace

    def leave(self, pace: Pace) -> None:
        """It is over."""
        self._open.discard(pace)

    async def unhurried(self) -> None:
        """Wait until no stream is late."""
        while self.lag_s > LATE_S:
            await asyncio.sleep(0.1)


def _refusal(why: str) -> ApiError:
    return ApiError(429, "realtime_capacity_exceeded", f"{why}: ask again later", retry_after_s=RETRY_S)


def capacity(factor: float) -> int:
    """How many streams keep up with real time, if each takes this share of it."""
    return int(SHARE / factor)
