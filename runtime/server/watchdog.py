"""Whether answers get on: what a health check asks that must notice a decoder that hangs."""

import time
from collections.abc import Callable
from typing import Any

from salmonrun.runtime.rounds import Rounds
from salmonrun.runtime.schedule import Round

STALLED_S = 60.0  # without a round, while answers are open: no round of any model takes as long


class Watchdog:
    """Looks at a decoder's rounds.

    Args:
        rounds: they are watched as long as there are any.
        clock: seconds.
    """

    def __init__(self, rounds: Rounds[Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._rounds = rounds
        self._clock = clock
        self._alive_at = clock()  # when there was a round, or nothing to be done
        self._rounds.watchers.append(self._note)

    def stalled_s(self) -> float:
        """How long answers have been open without a round; 0 where that is shorter than `STALLED_S`.

        Time counts from one call of this to the next, or from the last round: ask now and then.
        """
        if not self._rounds.open_searches:
            self._alive_at = self._clock()
        waited_s = self._clock() - self._alive_at
        return waited_s if waited_s >= STALLED_S else 0.0

    def _note(self, _: Round) -> None:
        self._alive_at = self._clock()
