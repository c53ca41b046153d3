"""On which terms somebody waits: who comes first, until when, and whether it is wanted at all."""

import threading
import time
from dataclasses import dataclass

from salmonrun.runtime.errors import ConfigError, DeadlineError

NORMAL = 0  # the priority of who says nothing
STREAM = -1  # of live streams, which have no time to wait: before all requests
POLL_S = 0.02  # between looks at an event that wakes nobody


class CancelledEarlyError(Exception):
    """Cancelled before anything was decoded: there is no answer, not even the beginning of one."""


@dataclass(frozen=True)
class Terms:
    """Of one request or stream."""

    priority: int = NORMAL  # lower comes first
    deadline: float | None = None  # time.monotonic() that it must be answered at; None: any
    cancel: threading.Event | None = None

    @classmethod
    def of(cls, priority: int, deadline_s: float | None, cancel: threading.Event | None) -> "Terms":
        """What a request says, `deadline_s` seconds from now.

        Raises:
            ConfigError: a priority of a stream's, or a deadline in the past.
        """
        if priority < NORMAL:
            raise ConfigError(f"priority is {priority}; it must not be negative (0: first, and behind live streams)")
        if deadline_s is not None and not deadline_s > 0:
            raise ConfigError(f"deadline_s is {deadline_s}; it must be above 0")
        return cls(priority, None if deadline_s is None else time.monotonic() + deadline_s, cancel)

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop."""
        return self.cancel is not None and self.cancel.is_set()

    @property
    def expired(self) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def check(self, before: str) -> None:
        """Whether to go on, before a stage.

        Raises:
            CancelledEarlyError: it was asked to stop.
            DeadlineError: its deadline has passed.
        """
        if self.cancelled:
            raise CancelledEarlyError(f"cancelled before {before}")
        if self.expired:
            raise DeadlineError(f"the deadline passed before {before}: give it longer, or ask when less is to be done")


WHENEVER = Terms()
LIVE = Terms(STREAM)
