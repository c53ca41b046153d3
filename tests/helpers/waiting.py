"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable

PATIENCE_S = 120.0


def until(so: Callable[[], bool]) -> None:
    """Until it is so; a test that waits for what never comes fails."""
    end = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < end, f"it did not come to be so within {PATIENCE_S:g} s"
        time.sleep(0.01)
