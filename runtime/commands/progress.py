"""A line on a terminal that says how far long work is."""

import os
import sys
import time
from typing import TextIO


class ProgressLine:
    """One line that is written anew; nothing where nobody looks on, or the terminal cannot erase."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out = out
        self.shown = out.isatty() and os.environ.get("TERM") != "dumb"
        self._started = time.perf_counter()

    def show(self, text: str, share: float) -> None:
        """A bar of so large a share, how long it has taken, and what is done."""
        if self.shown:
            filled = round(24 * min(1.0, share))
            elapsed = time.perf_counter() - self._started
            self._out.write(f"\r\x1b[K{'█' * filled}{'░' * (24 - filled)} {elapsed:4.0f} s  {text}")
            self._out.flush()

    def close(self) -> None:
        """Erase it."""
        if self.shown:
            self._out.write("\r\x1b[K")
            self._out.flush()
