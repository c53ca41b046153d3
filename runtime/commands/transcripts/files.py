"""Files of transcripts: which are to be written, and how they are, so that each is whole or not there."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from salmonrun.runtime.commands.source import STDIN
from salmonrun.runtime.commands.transcripts.recordings import Recording
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.transcript import FORMATS, Transcript


@dataclass(frozen=True)
class Job:
    """A recording, and the files that get its transcript."""

    file: str
    targets: dict[str, Path]  # by format
    overwrite: bool = False  # files that are there


@dataclass(frozen=True)
class Plan:
    """What a run over many recordings has to do."""

    jobs: tuple[Job, ...]
    done: int  # further recordings, all files of which are there


def plan_files(recordings: Sequence[Recording], formats: Sequence[str], folder: str | None, overwrite: bool) -> Plan:
    """The files of each recording, in a folder as the recordings lie in theirs, or, without one, beside the recording.

    Files that are there are kept, and only those that are not are to be written; with `overwrite`, all.

    Raises:
        ConfigError: two recordings would be written to one file, or one over a recording or a folder; or standard
            input has nothing beside it.
    """
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise ConfigError(f"output_dir is {folder!r}, which is a file; expected a folder, which is made if need be")
    all_targets = {form: [_target(recording, form, folder) for recording in recordings] for form in formats}
    _check_clashes(recordings, all_targets)
    jobs = []
    for number, recording in enumerate(recordings):
        targets = {form: targets[number] for form, targets in all_targets.items()}
        missing = {form: target for form, target in targets.items() if overwrite or not os.path.lexists(target)}
        if missing:
            jobs.append(Job(recording.file, missing, overwrite))
    return Plan(tuple(jobs), len(recordings) - len(jobs))


@contextmanager
def claimed(job: Job) -> Iterator[dict[str, Path]]:
    """Keep other runs from a job's files until the context ends: those that are still to be written.

    What is written aside is locked, and the system itself lets go of the locks of a run that is killed.

    Raises:
        ConfigError: another run is writing one of them.
        OSError: they cannot be written.
    """
    with ExitStack() as locks:
        for target in job.targets.values():
            target.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(_locked(target))
        yield {form: target for form, target in job.targets.items() if job.overwrite or not os.path.lexists(target)}


def write_transcript(transcript: Transcript, targets: dict[str, Path]) -> None:
    """Each format into its claimed file: written aside and renamed, so that a killed run leaves none half-written.

    What such a run leaves aside is written anew by the next.
    """
    for form, target in targets.items():
        aside = _aside(target)
        # A file name in JSON need not be valid text.
        aside.write_text(FORMATS[form](transcript), "utf-8", "backslashreplace", newline="\n")
        aside.replace(target)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    aside = _aside(target)
    with aside.open("ab") as file:
        if not _lock(file.fileno()) or not _is(aside, file.fileno()):  # who had the lock may have renamed it just now
            raise ConfigError(
                f"another run of salmonrun transcribe is writing {target}: leave it to that one, or choose another "
                "--output-dir"
            )
        try:
            yield
        finally:
            if _is(aside, file.fileno()):  # and neither renamed nor another run's by now
                aside.unlink()


def _lock(descriptor: int) -> bool:
    """Whether nobody else has the file's lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _target(recording: Recording, form: str, folder: str | None) -> Path:
    if folder is not None:
        return Path(folder) / f"{recording.place}.{form}"
    if recording.file == STDIN:
        raise ConfigError("standard input (-) has no folder to write beside it; say where with --output-dir DIR")
    return Path(recording.file).parent / f"{recording.place.name}.{form}"


def _check_clashes(recordings: Sequence[Recording], all_targets: dict[str, list[Path]]) -> None:
    files = {Path(recording.file).resolve() for recording in recordings}
    for targets in all_targets.values():
        first: dict[Path, str] = {}
        for recording, target in zip(recordings, targets, strict=True):
            if target in first:
                raise ConfigError(
                    f"{first[target]}, {recording.file} would both be written to {target}; give them other names, or "
                    "in several calls"
                )
            first[target] = recording.file
            if target.resolve() in files or target.is_dir():
                what = "a folder" if target.is_dir() else "one of the recordings"
                raise ConfigError(f"{target} would be written, and is {what}; choose another --output-dir")
