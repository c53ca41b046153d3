"""Where the time of a request goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Lap = Callable[[str, float, float], object]  # a stage, and time.perf_counter() of its begin and end
_listener: ContextVar[Lap | None] = ContextVar("listener", default=None)


@contextmanager
def telling_laps(listener: Lap) -> Iterator[None]:
    """Within it, laps of all requests of this thread are told, while they are on their way."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Stopwatch:
    """Wall-clock seconds of the stages of one request. A stage begins where the one before ended: their sum is all."""

    def __init__(self) -> None:
        self.started = self._last = time.perf_counter()
        self.stages: dict[str, float] = {}

    def lap(self, stage: str, at: float | None = None) -> None:
        """What was done since the lap before, or since the start, was this stage; it was over `at`, or is now."""
        now = time.perf_counter() if at is None else at
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        if listener := _listener.get():
            listener(stage, self._last, now)
        self._last = now

    @property
    def elapsed(self) -> float:
        """Seconds from the start to the end of the last lap."""
        return self._last - self.started
