"""The published annotation JSON: what each recording is, and what is wrong with it. Nothing is replaced in silence."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmonrun.runtime.audio_file import open_audio_file
from salmonrun.runtime.config import AudioConfig, PromptConfig
from salmonrun.runtime.errors import AudioError
from salmonrun.training.tensors import read_json

GAP_S = 0.1  # silence in front of each appended recording, as published
KNOWN_KEYS = {"path", "text", "task", "Q", "expand_wav", "testset_id", "voice"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One recording, one task, one answer."""

    dataset: str  # the annotation file
    index: int  # in its list
    path: Path
    text: str
    task: str = "asr"
    question: str = ""  # fills the {} of the task's prompt
    appended: tuple[Path, ...] = ()  # recordings played after the first, 0.1 s apart (published key expand_wav)
    testset_id: str = ""

    @property
    def recordings(self) -> tuple[Path, ...]:
        """The recording and those appended to it."""
        return (self.path, *self.appended)


@dataclass(frozen=True)
class Problem:
    """An entry that cannot be used, and why."""

    dataset: str
    index: int
    reason: str

    def __str__(self) -> str:
        return f"{self.dataset}: entry {self.index}: {self.reason}"


def read_annotation(
    file: str | Path, prefix: str | Path | None = None, lenient: bool = False
) -> tuple[list[Entry], list[Problem]]:
    """Entries of an annotation JSON, and those that are malformed.

    Args:
        file: `{"annotation": [{"path", "text", "task"?, "Q"?, "expand_wav"?, "testset_id"?}, ...]}`.
        prefix: folder of relative paths; None for the annotation's own.
        lenient: ignore keys that are not known; the log has them once, as a warning.

    Raises:
        CheckpointError: the file is not such a JSON.
    """
    file = Path(file)
    listed = read_json(file).get("annotation")
    root = Path(prefix) if prefix is not None else file.parent
    entries, problems = [], []
    ignored: set[str] = set()
    for index, raw in enumerate(listed if isinstance(listed, list) else []):
        unknown = sorted(set(raw) - KNOWN_KEYS) if isinstance(raw, dict) else []
        if unknown and not lenient:
            known = ", ".join(sorted(KNOWN_KEYS))
            problems.append(Problem(str(file), index, f"unknown key {unknown[0]!r}; known are {known}"))
            continue
        ignored |= set(unknown)
        reason = _malformed(raw) or _outside(raw)
        if reason:
            problems.append(Problem(str(file), index, reason))
            continue
        extra = tuple(_resolve(root, path) for path in raw.get("expand_wav") or [])
        text, question = raw.get("text", ""), raw.get("Q") or ""
        testset_id = raw.get("testset_id") or ""
        entries.append(
            Entry(
                str(file),
                index,
                _resolve(root, raw["path"]),
                text,
                raw.get("task") or "asr",
                question,
                extra,
                testset_id,
            )
        )
    if ignored:
        _log.warning("%s: keys that are not known are ignored: %s", file, ", ".join(map(repr, sorted(ignored))))
    if not isinstance(listed, list):
        problems.append(Problem(str(file), 0, 'the file has no list under "annotation"'))
    return entries, problems


def check_entry(entry: Entry, prompts: PromptConfig, audio: AudioConfig, needs_text: bool = True) -> str:
    """Why an entry cannot be used; empty if it can. Reads the headers of its recordings, not their samples.

    Without `needs_text` the text may be empty, as in the test set of a competition.
    """
    if entry.task not in prompts.tasks:
        return f"unknown task {entry.task!r}; there are prompts for {', '.join(sorted(prompts.tasks))}"
    if not entry.question and any("{}" in prompt for prompt in prompts.tasks[entry.task]):
        return f"task {entry.task!r} needs a question, and Q is empty"
    if needs_text and not entry.text.strip():
        return "the text is empty"
    return check_recordings(entry, audio)


def part_usable(
    entries: Sequence[Entry], prompts: PromptConfig, audio: AudioConfig
) -> tuple[list[Entry], list[Problem]]:
    """Entries that can be used, and the others with their reason."""
    reasons = [check_entry(entry, prompts, audio) for entry in entries]
    usable = [entry for entry, reason in zip(entries, reasons, strict=True) if not reason]
    return usable, [Problem(e.dataset, e.index, reason) for e, reason in zip(entries, reasons, strict=True) if reason]


def check_recordings(entry: Entry, audio: AudioConfig) -> str:
    """Why `load_audio` would refuse the recordings of an entry; empty if it takes them. Reads headers, not samples.

    Sample rates that audio has are resampled and a short recording is padded, so neither is a reason.
    """
    seconds, reason = _measure(entry)
    if not reason and _too_long(seconds, audio):
        return f"{seconds:.1f} s of audio; the model hears {audio.max_s:g} s"
    return reason


def is_too_long(entry: Entry, audio: AudioConfig) -> bool:
    """Whether the recordings of an entry can be read, but are longer than the model hears at once."""
    seconds, reason = _measure(entry)
    return not reason and _too_long(seconds, audio)


def _measure(entry: Entry) -> tuple[float, str]:
    """Seconds of the recordings with the silence between them, and why one cannot be read."""
    seconds = GAP_S * len(entry.appended)
    for path in entry.recordings:
        if not os.path.isfile(path):  # unlike Path's, it takes names that no file system has
            return 0.0, f"{path} " + ("is a folder or a device" if os.path.exists(path) else "does not exist")
        try:
            with open_audio_file(path) as file:
                frames, rate = file.frames, file.rate
        except AudioError as error:
            return 0.0, f"{path} cannot be read as audio ({error})"
        if not frames:
            return 0.0, f"{path} is empty"
        seconds += frames / rate
    return seconds, ""


def _too_long(seconds: float, audio: AudioConfig) -> bool:
    return seconds > audio.max_s + 1e-3  # the tolerance of load_audio


def _malformed(raw: Any) -> str:
    if not isinstance(raw, dict):
        return f"expected an object, got {type(raw).__name__}"
    if raw.get("text", "") is None:
        return "text is null, expected a string"
    extra = raw.get("expand_wav") or []
    if not isinstance(extra, list) or not all(isinstance(path, str) and path for path in extra):
        return f"expand_wav is {extra!r}, expected a list of paths"
    for key in ("path", "text", "task", "Q", "testset_id", "voice"):
        if not isinstance(raw.get(key, ""), str) and raw[key] is not None:
            return f"{key} is a {type(raw[key]).__name__}, expected a string"
    if not raw.get("path"):
        return "path is missing"
    return ""


def _outside(raw: dict[str, Any]) -> str:
    """Why a path is one that no data set needs: it climbs out of its folder, or is no file's."""
    for path in (raw["path"], *(raw.get("expand_wav") or [])):
        if "\0" in path or os.path.normpath(path.lstrip("/")).split("/")[0] == "..":
            return f"{path!r} leads out of its folder; name a prefix further up, or an absolute path"
        if os.path.isabs(path) and os.path.exists(path) and not os.path.isfile(path):
            return f"{path!r} is a folder or a device; expected a recording"
    return ""


def _resolve(root: Path, path: str) -> Path:
    """As the published data has it: a leading slash is relative to the prefix unless that file exists."""
    absolute = Path(path)
    return absolute if absolute.is_absolute() and os.path.exists(absolute) else root / path.lstrip("/")
