"""Annotation JSONs: every entry is used or reported, none is dropped unseen."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.config import AudioConfig, PromptConfig
from salmonrun.runtime.errors import AudioTooLongError, CheckpointError
from salmonrun.training.data.annotation import Entry, Problem, check_entry, check_recordings, read_annotation

TASKS = PromptConfig(tasks={"qa": ("<SpeechHere> {}",), "asr": ("<SpeechHere> Write.",)})
GOOD = {"path": "a.wav", "text": "a text"}
# What is wrong -> the entry, and words of the reason.
MALFORMED: dict[str, tuple[Any, str]] = {
    "number": (3, "expected an object, got int"),
    "null": (None, "expected an object, got NoneType"),
    "string": ("a.wav", "expected an object, got str"),
    "list": (["a.wav", "a text"], "expected an object, got list"),
    "unknown key": (GOOD | {"txt": "typo"}, "unknown key 'txt'.*expand_wav.*path.*text"),
    "empty object": ({}, "path is missing"),
    "no path": ({"text": "a text"}, "path is missing"),
    "empty path": (GOOD | {"path": ""}, "path is missing"),
    "null path": (GOOD | {"path": None}, "path is missing"),
    "path": (GOOD | {"path": ["a.wav"]}, "path is a list, expected a string"),
    "path 0": (GOOD | {"path": 0}, "path is a int, expected a string"),
    "text": (GOOD | {"text": 12}, "text is a int, expected a string"),
    "null text": (GOOD | {"text": None}, "text"),
    "task": (GOOD | {"task": {"asr": 1}}, "task is a dict, expected a string"),
    "Q": (GOOD | {"Q": False}, "Q is a bool, expected a string"),
    "testset_id": (GOOD | {"testset_id": 7}, "testset_id is a int, expected a string"),
    "expand_wav string": (GOOD | {"expand_wav": "b.wav"}, "expand_wav"),
    "expand_wav number": (GOOD | {"expand_wav": 5}, "expand_wav"),
    "expand_wav object": (GOOD | {"expand_wav": {"b.wav": 1}}, "expand_wav"),
    "expand_wav of numbers": (GOOD | {"expand_wav": ["b.wav", 1]}, "expand_wav"),
    "expand_wav of empty": (GOOD | {"expand_wav": [""]}, "expand_wav"),
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_annotation(*entries: Any) -> Path:
        file = tmp_path / "data" / "annotation.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"annotation": entries}))
        return file

    return write_annotation


def recording(path: Path, seconds: float, rate: int = 8000) -> Path:
    soundfile.write(path, np.zeros(round(seconds * rate)), rate)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Entry:
    return Entry("data.json", 0, recording(tmp_path / "good.wav", 0.5), "a text")


def test_entries(write: Write) -> None:
    question = {"path": "b/c.flac", "text": "yes", "task": "qa", "Q": "is it?", "testset_id": "t1", "voice": "v"}
    file = write(GOOD, question)
    entries, problems = read_annotation(file)
    assert problems == []
    assert entries == [
        Entry(str(file), 0, file.parent / "a.wav", "a text"),
        Entry(str(file), 1, file.parent / "b" / "c.flac", "yes", "qa", "is it?", (), "t1"),
    ]
    assert (entries[0].task, entries[0].question, entries[0].appended, entries[0].testset_id) == ("asr", "", (), "")


def test_null_is_the_default(write: Write) -> None:
    file = write(GOOD | {"task": None, "Q": None, "expand_wav": None, "testset_id": None, "voice": None})
    assert read_annotation(str(file)) == ([Entry(str(file), 0, file.parent / "a.wav", "a text")], [])


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_entry_is_reported(write: Write, what: str) -> None:
    raw, reason = MALFORMED[what]
    file = write(GOOD, raw, GOOD)
    entries, problems = read_annotation(file)
    assert [entry.index for entry in entries] == [0, 2]
    assert [(problem.dataset, problem.index) for problem in problems] == [(str(file), 1)]
    assert re.search(reason, problems[0].reason)


def test_nothing_is_dropped(write: Write) -> None:
    listed = [entry for raw, _ in MALFORMED.values() for entry in (raw, GOOD)]
    entries, problems = read_annotation(write(*listed))
    assert len(entries) + len(problems) == len(listed)
    assert [entry.index for entry in entries] == list(range(1, len(listed), 2))
    assert [problem.index for problem in problems] == list(range(0, len(listed), 2))


def test_lenient(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    """Keys that are not known are ignored and named once; all else that is wrong stays wrong."""
    file = write(GOOD | {"speaker": 3}, GOOD | {"speaker": 4, "id": "x"}, {"text": "no path", "id": "y"}, "no object")
    strict, problems = read_annotation(file)
    assert (strict, [problem.index for problem in problems], caplog.messages) == ([], [0, 1, 2, 3], [])
    entries, problems = read_annotation(file, lenient=True)
    assert [(entry.index, entry.text) for entry in entries] == [(0, GOOD["text"]), (1, GOOD["text"])]
    assert [problem.reason for problem in problems] == ["path is missing", "expected an object, got str"]
    assert caplog.messages == [f"{file}: keys that are not known are ignored: 'id', 'speaker'"]


def test_problem_names_file_entry_and_reason() -> None:
    assert str(Problem("data.json", 3, "path is missing")) == "data.json: entry 3: path is missing"


def test_empty_list(write: Write) -> None:
    assert read_annotation(write()) == ([], [])


@pytest.mark.parametrize("content", ['{"annotation": {"path": "a.wav"}}', '{"annotation": null}', '{"data": []}', "{}"])
def test_no_list_is_a_problem(tmp_path: Path, content: str) -> None:
    file = tmp_path / "annotation.json"
    file.write_text(content)
    entries, (problem,) = read_annotation(file)
    assert entries == []
    assert str(problem) == f'{file}: entry 0: the file has no list under "annotation"'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "holds a list"),
        (b'{"annotation": [', "not JSON"),
        (b"path,text", "not JSON"),
        (b"", "not JSON"),
        (b'{"annotation": "\xff"}', "not JSON"),
    ],
)
def test_not_such_a_json(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "annotation.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"annotation\.json .*{reason}"):
        read_annotation(file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.json does not exist"):
        read_annotation(tmp_path / "none.json")


def test_paths_against_a_prefix(write: Write, tmp_path: Path) -> None:
    file = write(GOOD, GOOD | {"path": "/LibriSpeech/b.flac", "expand_wav": ["c.wav", "/d/e.wav"]})
    (first, second), _ = read_annotation(file, tmp_path / "audio")
    assert first.path == tmp_path / "audio" / "a.wav"
    assert second.path == tmp_path / "audio" / "LibriSpeech" / "b.flac"
    assert second.appended == (tmp_path / "audio" / "c.wav", tmp_path / "audio" / "d" / "e.wav")
    assert read_annotation(file, str(tmp_path / "audio"))[0] == [first, second]


def test_leading_slash_without_a_prefix(write: Write) -> None:
    file = write(GOOD | {"path": "/LibriSpeech/b.flac"})
    assert read_annotation(file)[0][0].path == file.parent / "LibriSpeech" / "b.flac"


def test_absolute_path_that_exists(write: Write, tmp_path: Path) -> None:
    path = recording(tmp_path / "elsewhere.wav", 0.1)
    file = write(GOOD | {"path": str(path), "expand_wav": [str(path)]})
    (entry,), _ = read_annotation(file, tmp_path / "audio")
    assert (entry.path, entry.appended) == (path, (path,))


def test_good_entry(good: Entry) -> None:
    assert check_entry(good, TASKS, AudioConfig()) == ""
    assert check_entry(replace(good, appended=(good.path, good.path)), TASKS, AudioConfig()) == ""


def test_unknown_task(good: Entry) -> None:
    reason = check_entry(replace(good, task="translate"), TASKS, AudioConfig())
    assert reason == "unknown task 'translate'; there are prompts for asr, qa"


def test_a_question_that_is_not_there(good: Entry) -> None:
    reason = check_entry(replace(good, task="qa"), TASKS, AudioConfig())
    assert reason == "task 'qa' needs a question, and Q is empty"
    assert check_entry(replace(good, task="qa", question="Who speaks?"), TASKS, AudioConfig()) == ""


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_text(good: Entry, text: str) -> None:
    assert check_entry(replace(good, text=text), TASKS, AudioConfig()) == "the text is empty"


def test_missing_text(write: Write) -> None:
    (entry,), _ = read_annotation(write({"path": "a.wav"}))
    assert check_entry(entry, TASKS, AudioConfig()) == "the text is empty"


@pytest.mark.parametrize("appended", [False, True])
class TestUnusableRecording:
    """The first and the appended recordings are checked alike."""

    @pytest.fixture
    def check(self, good: Entry, appended: bool) -> Callable[[Path], str]:
        def checked(path: Path) -> str:
            entry = replace(good, appended=(path,)) if appended else replace(good, path=path)
            return check_entry(entry, TASKS, AudioConfig())

        return checked

    def test_missing(self, check: Callable[[Path], str], tmp_path: Path) -> None:
        assert check(tmp_path / "none.wav") == f"{tmp_path / 'none.wav'} does not exist"

    def test_folder(self, check: Callable[[Path], str], tmp_path: Path) -> None:
        assert str(tmp_path) in check(tmp_path)

    def test_name_too_long_for_the_file_system(self, check: Callable[[Path], str], tmp_path: Path) -> None:
        assert "x" * 300 in check(tmp_path / ("x" * 300))

    def test_text_named_wav(self, check: Callable[[Path], str], tmp_path: Path) -> None:
        path = tmp_path / "text.wav"
        path.write_text("not audio\n" * 10)
        assert check(path).startswith(f"{path} cannot be read as audio (")

    def test_headerless(self, check: Callable[[Path], str], tmp_path: Path) -> None:
        path = tmp_path / "headerless.raw"  # soundfile.info asks for the rate of these with a TypeError
        path.write_bytes(bytes(100))
        assert check(path).startswith(f"{path} cannot be read as audio")

    def test_empty(self, check: Callable[[Path], str], tmp_path: Path) -> None:
        path = recording(tmp_path / "empty.wav", 0)
        assert check(path) == f"{path} is empty"

    def test_too_long(self, check: Callable[[Path], str], tmp_path: Path) -> None:
        assert check(recording(tmp_path / "long.wav", 31)).endswith(" s of audio; the model hears 30 s")


def test_too_long_in_sum(good: Entry, tmp_path: Path) -> None:
    path = recording(tmp_path / "half.wav", 20, 16000)
    assert check_entry(replace(good, path=path), TASKS, AudioConfig()) == ""
    reason = check_entry(replace(good, path=path, appended=(path,)), TASKS, AudioConfig())
    assert reason.startswith("40.")
    assert check_entry(replace(good, path=path), TASKS, AudioConfig(max_s=10)) != ""


def test_full_window(good: Entry, tmp_path: Path) -> None:
    entry = replace(good, path=recording(tmp_path / "full.wav", 30))
    assert check_entry(entry, TASKS, AudioConfig()) == ""


def test_gaps_between_recordings_count(good: Entry, tmp_path: Path) -> None:
    path = recording(tmp_path / "half.wav", 14.98)
    assert check_entry(replace(good, path=path, appended=(path,)), TASKS, AudioConfig()) != ""  # 29.96 s + 0.1 s


@pytest.mark.parametrize("seconds", [29.9, 30.0, 30.0005, 30.01])
def test_the_limit_is_that_of_load_audio(good: Entry, tmp_path: Path, seconds: float) -> None:
    path, audio = recording(tmp_path / "limit.wav", seconds, 16000), AudioConfig()
    refused = bool(check_recordings(replace(good, path=path), audio))
    try:
        load_audio(path, min_s=audio.min_s, max_s=audio.max_s)
    except AudioTooLongError:
        assert refused
    else:
        assert not refused


@pytest.mark.parametrize("rate", [1000, 4000, 11025, 96000])
def test_short_recordings_of_any_rate_are_used(good: Entry, tmp_path: Path, rate: int) -> None:
    path = recording(tmp_path / "short.wav", 2 / rate, rate)
    assert check_entry(replace(good, path=path), TASKS, AudioConfig()) == ""
    assert load_audio(path, max_s=30).duration_s == 1  # as load_audio sees it
