"""Where the time of a request goes."""

import time


class Stopwatch:
    """Wall-clock seconds of the stages of one request. A stage begins where the one before ended: their sum is all."""

    def __init__(self) -> None:
        self.started = self._last = time.perf_counter()
        self.stages: dict[str, float] = {}

    def lap(self, stage: str, at: float | None = None) -> None:
        """What was done since the lap before, or since the start, was this stage; it was over `at`, or is now."""
        now = time.perf_counter() if at is None else at
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now

    @property
    def elapsed(self) -> float:
        """Seconds from the start to the end of the last lap."""
        return self._last - self.started
