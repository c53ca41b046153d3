"""How far a run over many recordings is: a bar on a terminal, a plain line now and then elsewhere."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from salmonrun.runtime.commands.progress import ProgressLine
from salmonrun.runtime.commands.transcripts.files import Job

if TYPE_CHECKING:
    from salmonrun.runtime import Segment

_EVERY_S = 10.0  # between plain lines


class BatchProgress:
    """Counts files and seconds of audio, from any thread, and says when they will be done."""

    def __init__(
        self,
        lengths_s: Sequence[float],
        out: TextIO = sys.stdout,
        report: TextIO = sys.stderr,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Args:
        lengths_s: of each recording as its header has it, in seconds; 0 where nothing is known.
        out: gets a line for each recording that is written.
        report: gets all else.
        clock: in seconds.
        """
        self._files, self._total_s = len(lengths_s), sum(lengths_s)
        self._out, self._report, self._clock = out, report, clock
        self._line = ProgressLine(report)
        self._lock = threading.Lock()
        self._started = self._told = clock()
        self._ended = 0
        self._whole_s = 0.0  # audio of recordings that are done
        self._parts_s: dict[str, float] = {}  # of each that is being answered about, how far it is

    def part(self, file: str, duration_s: float, segment: "Segment | None") -> None:
        """A long recording has come so far."""
        with self._lock:
            self._parts_s[file] = min(segment.end, duration_s) if segment else 0.0
            self._tell()

    def ended(self, job: Job, audio_s: float, summary: str, error: str) -> None:
        """A recording is written, or failed; or there was nothing of it left to be written."""
        with self._lock:
            self._line.close()
            self._ended += 1
            self._parts_s.pop(job.file, None)
            self._whole_s += audio_s
            if error:
                print(f"error: {job.file}: {error}", file=self._report, flush=True)
            elif job.targets:
                print(f"{job.file}: {', '.join(map(str, job.targets.values()))}", file=self._out, flush=True)
                print(f"  {summary}", file=self._report, flush=True)
            else:
                print(f"{job.file}: {summary}", file=self._report, flush=True)
            self._tell()

    def close(self) -> None:
        """Erase the bar."""
        with self._lock:
            self._line.close()

    def state(self) -> str:
        """Files, audio, speed and what is left, in a line."""
        done_s, took_s = self._done_s(), self._clock() - self._started
        parts = [
            f"{self._ended} of {self._files} files",
            f"{done_s / 60:.1f} of {max(done_s, self._total_s) / 60:.1f} min of audio",
        ]
        if done_s:
            left_s = took_s * max(0.0, self._total_s - done_s) / done_s
            parts += [f"real-time factor {took_s / done_s:.3f}", f"{_clock_time(left_s)} left"]
        return ", ".join(parts)

    def total(self) -> str:
        """What it took, in a few words."""
        took_s = self._clock() - self._started
        speed = f", real-time factor {took_s / self._whole_s:.3f}" if self._whole_s else ""
        return f"{self._whole_s / 60:.1f} min of audio in {_clock_time(took_s)}{speed}"

    def _done_s(self) -> float:
        return self._whole_s + sum(self._parts_s.values())

    def _tell(self) -> None:
        if self._line.shown:
            self._line.show(self.state(), self._done_s() / self._total_s if self._total_s else 0.0)
        elif self._ended < self._files and self._clock() - self._told >= _EVERY_S:
            self._told = self._clock()
            print(f"  {self.state()}", file=self._report, flush=True)


def length_s(file: str) -> float:
    """Seconds of a recording by its header; 0 for what can be read but once, or cannot be read."""
    from salmonrun.runtime.audio_file import open_audio_file
    from salmonrun.runtime.errors import SalmonrunError

    if not os.path.isfile(file):
        return 0.0
    try:
        with open_audio_file(file) as opened:
            return opened.frames / opened.rate
    except SalmonrunError:  # told when it is its turn
        return 0.0


def _clock_time(seconds: float) -> str:
    """As 7 s, 12:05 or 3:12:05."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes = f"{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else minutes.removeprefix("0")
