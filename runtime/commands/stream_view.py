"""What a stream says, on a terminal, in a file or a pipe, or as JSON lines."""

import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from salmonrun.runtime.commands.tally import Tally
from salmonrun.runtime.segment import BETWEEN_UTTERANCES
from salmonrun.runtime.transcript import one_line

if TYPE_CHECKING:
    from salmonrun.runtime import Result, Segment, Update

ERASE_LINE = "\r\x1b[K"
DIM, NORMAL = "\x1b[2m", "\x1b[0m"


class View(Protocol):
    """Shows a stream as it grows."""

    def update(self, update: "Update") -> None:
        """What is known now."""

    def utterance(self, segment: "Segment") -> None:
        """An utterance is over."""

    def result(self, result: "Result", tally: Tally) -> None:
        """The stream is over."""

    def close(self) -> None:
        """Nothing follows, whatever the reason."""


def open_view(out: TextIO, report: TextIO, as_json: bool, environment: Mapping[str, str] = os.environ) -> View:
    """The view that suits where the text goes, `out`. What people want to know beside it goes to `report`."""
    if as_json:
        return JsonView(out)
    if not out.isatty() or environment.get("TERM") == "dumb":
        return TextView(out, report)
    dim = not environment.get("NO_COLOR")  # https://no-color.org: set and not empty
    return TextView(out, report, lambda: shutil.get_terminal_size().columns, dim)


class JsonView:
    """One JSON object a line: "update", "utterance" and, at the end, "result".

    The `delta` of all updates and of the result, joined, are the result's text.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._stable = ""

    def update(self, update: "Update") -> None:
        """All fields but the segment, which is an event of its own."""
        fields = asdict(update)
        del fields["segment"]
        self._emit("update", fields)
        self._stable = update.stable

    def utterance(self, segment: "Segment") -> None:
        """All fields, and its place in seconds."""
        self._emit("utterance", segment.as_dict())

    def result(self, result: "Result", tally: Tally) -> None:
        """All fields, and what the end of the audio added to the text."""
        delta = result.text[len(self._stable) :]
        self._emit("result", {"delta": delta, "policy": tally.policy, **asdict(result)})

    def close(self) -> None:
        """Every line is complete."""

    def _emit(self, event: str, fields: dict[str, Any]) -> None:
        self._out.write(json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n")
        self._out.flush()


class TextView:
    """A line for each utterance that is over; on a terminal, the one that is not grows below them.

    Args:
        columns: of the terminal, asked for at every update; None: no terminal, no line that grows.
        dim: whether what is not stable is dimmed.
    """

    def __init__(
        self, out: TextIO, report: TextIO, columns: Callable[[], int] | None = None, dim: bool = False
    ) -> None:
        self._out = out
        self._report = report
        self._columns = columns
        self._dim = dim
        self._stable = ""
        self._over = 0  # characters of that in utterances that are over

    def update(self, update: "Update") -> None:
        """Redraw the line that grows."""
        self._stable = update.stable
        if self._columns and not update.segment:
            line = growing_line(self._stable[self._over :], update.partial, self._columns(), self._dim)
            self._out.write(ERASE_LINE + line)
            self._out.flush()

    def utterance(self, segment: "Segment") -> None:
        """Its line."""
        if segment.text:
            self._over += len(segment.text) + (len(BETWEEN_UTTERANCES) if self._over else 0)
        self._write_line(f"[{segment.start:.2f} - {segment.end:.2f}] {one_line(segment.text)}".rstrip())

    def result(self, result: "Result", tally: Tally) -> None:
        """What is stable of an utterance that was cancelled, and a summary for people."""
        self._stable = result.text
        self.close()
        self._report.write(f"  {tally.summary(result)}\n")

    def close(self) -> None:
        """What is stable of an utterance that is not over stays, behind [...]."""
        if rest := one_line(self._stable[self._over :]):
            self._over = len(self._stable)
            self._write_line(f"[...] {rest}")
        elif self._columns:
            self._out.write(ERASE_LINE)
            self._out.flush()

    def _write_line(self, line: str) -> None:
        self._out.write(f"{ERASE_LINE if self._columns else ''}{line}\n")
        self._out.flush()


def growing_line(stable: str, partial: str, columns: int, dim: bool) -> str:
    """The last of a text that fits on a terminal's line; what is `partial` is dimmed."""
    said, both = one_line(stable), one_line(stable + partial)
    shown = last_columns(both, columns - 1)  # a line that is full would make some terminals begin another
    split = max(0, len(said) - (len(both) - len(shown)))
    said, guessed = shown[:split], shown[split:]
    return f"{said}{DIM}{guessed}{NORMAL}" if dim and guessed else said + guessed


def last_columns(text: str, columns: int) -> str:
    """The longest end of a text that is not wider than so many columns of a terminal."""
    start, left = len(text), columns
    while start and (left := left - _width(text[start - 1])) >= 0:
        start -= 1
    return text[start:]


def _width(character: str) -> int:
    """Columns of a character: East Asian wide ones have two (UAX 11), marks and format characters none."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
