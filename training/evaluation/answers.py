"""Answers to the entries of an annotation, kept as JSON lines so that a run that was cut goes on where it stopped."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.data.annotation import Entry
from salmonrun.training.journal import Settings as Settings
from salmonrun.training.journal import append, read, resume

_WHAT = "answers of `salmonrun evaluate`"


@dataclass(frozen=True)
class Answered:
    """An entry and the model's hypothesis."""

    dataset: str
    index: int
    audio: str  # path of the recording; those appended to it after " + "
    task: str
    question: str
    reference: str  # empty in a test set without answers
    hypothesis: str
    audio_s: float
    took_s: float  # to read the recording and answer; what was asked before is not asked again and has its time
    score: float | None = None  # mean log probability of the answer's tokens; None: it has none
    repeated: bool = False  # whether it repeats itself without end

    @property
    def asked(self) -> tuple[str, str, str]:
        """What the model was asked; entries that share it differ in their reference at most."""
        return self.audio, self.task, self.question

    def belongs_to(self, entry: Entry) -> bool:
        """Whether this is the answer to an entry as it is now."""
        return (*self.asked, self.reference) == (*asked(entry), entry.text)


def asked(entry: Entry) -> tuple[str, str, str]:
    """Audio, task and question of an entry, as in `Answered.asked`."""
    return " + ".join(map(str, entry.recordings)), entry.task, entry.question


def resume_answers(path: Path, settings: Settings) -> list[Answered]:
    """The answers in a file of a run with the same settings; the file is made if there is none.

    A last line that a crash cut is removed from the file.

    Raises:
        CheckpointError: the file was made with other settings, or is something else.
    """
    return _once(path, resume(path, settings, Answered, _WHAT))


def read_answers(path: Path) -> tuple[Settings, list[Answered]]:
    """What a run was made with, and its answers.

    Raises:
        CheckpointError: the file is something else.
    """
    settings, rows = read(path, Answered, _WHAT)
    return settings, _once(path, rows)


def _once(path: Path, rows: list[Answered]) -> list[Answered]:
    """The rows, of which no entry has two: such a file was edited, and would count it twice."""
    seen = set()
    for row in rows:
        if (row.dataset, row.index) in seen:
            raise CheckpointError(
                f"{path} has two answers to entry {row.index} of {row.dataset}: it was edited; remove one of them, or "
                "choose another file"
            )
        seen.add((row.dataset, row.index))
    return rows


def append_answer(file: TextIO, row: Answered) -> None:
    """Write an answer behind the others, at once."""
    append(file, asdict(row))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table beside `path` and rename it: all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
