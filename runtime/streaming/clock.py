"""When a stream's updates are due, and how far the stream is behind real time."""

import time

from salmonrun.runtime.audio import SAMPLE_RATE


class UpdateClock:
    """Counts the samples of a stream and of its utterance.

    Args:
        interval: samples of an utterance between two updates.
        first: samples that the first update needs beyond that.
        max_lag_s: where the stream falls so far behind, updates are left out; None: never.
    """

    def __init__(self, interval: int, first: int, max_lag_s: float | None) -> None:
        self._interval = interval
        self._first = first
        self._max_lag_s = max_lag_s
        self._due = 0  # samples of the utterance at which the next update is
        self._started: float | None = None  # perf_counter() at which the stream's first sample was recorded
        self._left_out = 0
        self.samples = 0  # of the stream, taken so far

    @property
    def audio_s(self) -> float:
        """Seconds of the stream taken so far."""
        return self.samples / SAMPLE_RATE

    @property
    def lag_s(self) -> float:
        """How far the stream is behind real time; 0 while it keeps up."""
        assert self._started is not None
        return max(0.0, time.perf_counter() - self._started - self.audio_s)

    def pushed(self, samples: int) -> None:
        """So many samples have arrived, the last of them just now."""
        if self._started is None:
            self._started = time.perf_counter() - samples / SAMPLE_RATE

    def begin_utterance(self) -> None:
        """The next update is an interval behind the utterance's first sample."""
        self._due = self._interval + self._first

    def due(self, length: int) -> bool:
        """Whether an update is due in an utterance of so many samples; the next one is an interval later."""
        if length < self._due:
            return False
        self._due += (1 + (length - self._due) // self._interval) * self._interval
        return True

    def leaves_out(self, waiting: int) -> bool:
        """Whether to leave out an update that is due: the stream is late, and `waiting` samples hold the next one."""
        late = self._max_lag_s is not None and waiting >= self._interval and self.lag_s > self._max_lag_s
        self._left_out += late
        return late

    def take_left_out(self) -> int:
        """How many updates were left out since this was asked."""
        count, self._left_out = self._left_out, 0
        return count
