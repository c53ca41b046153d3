"""Transcripts on standard output, recording after recording."""

from typing import TYPE_CHECKING, Protocol, TextIO

from salmonrun.runtime.transcript import FORMATS, Transcript

if TYPE_CHECKING:
    from salmonrun.runtime import Segment

ONE_AFTER_ANOTHER = ("txt", "json")  # formats of which several can stand in one output


class View(Protocol):
    """Shows transcripts as they come."""

    def segment(self, file: str, segment: "Segment") -> None:
        """A part of a long recording was answered about."""

    def transcript(self, transcript: Transcript) -> None:
        """A recording is done, or failed."""


class LinesView:
    """Text on `out`, line by line; what people want to know beside it on `report`."""

    def __init__(self, out: TextIO, report: TextIO) -> None:
        self._out = out
        self._report = report
        self._in_parts = False

    def segment(self, file: str, segment: "Segment") -> None:
        """Its line, at once."""
        self._in_parts = True
        self._write(f"{file}: [{segment.start:.2f} - {segment.end:.2f}] {segment.text.strip()}")

    def transcript(self, transcript: Transcript) -> None:
        """Its line, unless it came in parts; and a summary."""
        if not transcript.error:
            if not self._in_parts:
                self._write(f"{transcript.file}: {transcript.text}")
            print(f"  {transcript.summary()}", file=self._report, flush=True)
        self._in_parts = False

    def _write(self, line: str) -> None:
        print(line, file=self._out, flush=True)


class FormatView:
    """A format on `out`. JSON has all there is, errors too; beside the others, a summary goes to `report`."""

    def __init__(self, out: TextIO, report: TextIO, format_: str) -> None:
        self._out = out
        self._report = report
        self._format = format_

    def segment(self, file: str, segment: "Segment") -> None:
        """Waits for the others."""

    def transcript(self, transcript: Transcript) -> None:
        """All of it."""
        if self._format == "json" or not transcript.error:
            self._out.write(FORMATS[self._format](transcript))
            self._out.flush()
        if self._format != "json" and not transcript.error:
            print(f"  {transcript.summary()}", file=self._report, flush=True)


def open_view(format_: str, out: TextIO, report: TextIO) -> View:
    """The view of a format."""
    return LinesView(out, report) if format_ == "txt" else FormatView(out, report, format_)
