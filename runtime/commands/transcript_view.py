"""Where transcripts go: standard output, or a file for each recording."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from salmonrun.runtime.commands.source import STDIN
from salmonrun.runtime.errors import ConfigError
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


class FolderView:
    """A file for each recording. One that fails has none: what is there is whole."""

    def __init__(self, targets: dict[str, Path], format_: str, out: TextIO, report: TextIO) -> None:
        self._targets = targets
        self._format = format_
        self._out = out
        self._report = report

    def segment(self, file: str, segment: "Segment") -> None:
        """Waits for the others."""

    def transcript(self, transcript: Transcript) -> None:
        """Written aside and renamed."""
        if transcript.error:
            return
        target = self._targets[transcript.file]
        aside = target.with_name(f".{target.name}.partial")
        try:
            # A file name in JSON need not be valid text.
            aside.write_text(FORMATS[self._format](transcript), "utf-8", "backslashreplace", newline="\n")
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
        print(f"{transcript.file}: {target}", file=self._out, flush=True)
        print(f"  {transcript.summary()}", file=self._report, flush=True)


def choose_targets(files: Sequence[str], folder: str, format_: str, overwrite: bool) -> dict[str, Path]:
    """The file of each recording: FOLDER/NAME.FORMAT, where NAME is the recording's without its suffix.

    Raises:
        ConfigError: two recordings of one name, or a file that is there and not to be overwritten, or never may be.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ConfigError(f"output_dir is {folder!r}, which is a file; expected a folder, which is made if need be")
    targets = [Path(folder) / f"{'stdin' if file == STDIN else Path(file).stem}.{format_}" for file in files]
    for target, count in Counter(targets).items():
        if count > 1:
            twice = ", ".join(file for file, one in zip(files, targets, strict=True) if one == target)
            raise ConfigError(f"{twice} would all be written to {target}; give them other names, or in several calls")
    recordings = {Path(file).resolve() for file in files}
    for target in targets:
        if target.resolve() in recordings or target.is_dir():
            what = "a folder" if target.is_dir() else "one of the recordings"
            raise ConfigError(f"{target} would be written, and is {what}; choose another --output-dir")
        if not overwrite and (target.exists() or target.is_symlink()):
            raise ConfigError(f"{target} exists; choose another --output-dir, or have it replaced with --overwrite")
    return dict(zip(files, targets, strict=True))


def open_view(format_: str, targets: dict[str, Path] | None, out: TextIO, report: TextIO) -> View:
    """The view of a format, on `out` or in a file for each recording, `targets`."""
    if targets is not None:
        return FolderView(targets, format_, out, report)
    return LinesView(out, report) if format_ == "txt" else FormatView(out, report, format_)
