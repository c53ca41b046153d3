"""Transcripts of `salmonrun transcribe`: one schema, formats that others read, and files that are whole."""

import io
import json
import re
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.__main__ import main
from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.commands.transcripts.files import write_transcript
from salmonrun.runtime.errors import AudioError
from salmonrun.runtime.latency.recording import STORY
from salmonrun.runtime.transcript import FORMATS, Transcript
from tests.helpers.commands import run

FEW = ["--max-new-tokens", "8"]
PAGE = Path(__file__).parents[2] / "docs" / "output.md"

# What docs/output.md says: key -> type, or a list of what each of its items is.
Schema = dict[str, Any]
SEGMENT: Schema = {
    "start": float,
    "end": float,
    "text": str,
    "token_ids": [int],
    "finish_reason": str,
    "notes": [str],
}
SCHEMA: Schema = {
    "file": str,
    "text": str,
    "segments": [SEGMENT],
    "timings": dict,
    "dropped_s": float,
    "notes": [str],
    "error": (dict, type(None)),
}


def check_schema(value: Any, schema: Any) -> None:
    """All keys of the schema, of its types; further ones may come."""
    if isinstance(schema, list):
        assert isinstance(value, list)
        for item in value:
            check_schema(item, schema[0])
    elif isinstance(schema, dict):
        assert set(schema) <= set(value)
        for key, kind in schema.items():
            check_schema(value[key], kind)
    else:
        assert isinstance(value, schema), (value, schema)


def check_document(document: dict[str, Any]) -> None:
    check_schema(document, SCHEMA)
    assert {"audio_s", "total_s"} <= set(document["timings"])
    ends = [0.0, *(segment["end"] for segment in document["segments"])]
    for segment, before in zip(document["segments"], ends, strict=False):
        assert before <= segment["start"] < segment["end"] <= document["timings"]["audio_s"]
    if document["error"]:
        assert set(document["error"]) == {"type", "message"}


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 s with pauses of 2 s."""
    return _story(tmp_path_factory.mktemp("long") / "long.wav", 4)


@pytest.fixture(scope="module")
def cut_flac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 144 s, as much as there is before a decoder fails: more than one batch of windows."""
    path = _story(tmp_path_factory.mktemp("cut") / "cut.flac", 12)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 11 // 12])
    return path


def _story(path: Path, times: int) -> Path:
    story, rate = soundfile.read(STORY, stop=10 * SAMPLE_RATE)
    soundfile.write(path, np.concatenate([story, np.zeros(2 * rate)] * times), rate)
    return path


# JSON


def test_one_schema_for_short_and_long_recordings_and_failures(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tiny_engine: Engine, speech: Path, long: Path, cut_flac: Path
) -> None:
    gone = long.with_name("gone.wav")
    code, out, err = run(capsys, "transcribe", tiny_bundle, speech, long, gone, cut_flac, "--format", "json", *FEW)
    assert code == 1
    short, parts, nothing, broken = documents = [json.loads(line) for line in out]
    for document in documents:
        check_document(document)
    assert [document["file"] for document in documents] == [str(speech), str(long), str(gone), str(cut_flac)]
    assert [document["error"] and document["error"]["type"] for document in documents] == [
        None,
        None,
        "AudioNotFoundError",
        "AudioError",
    ]
    config = GenerationConfig(max_new_tokens=8)
    result = tiny_engine.generate(speech, config=config)
    assert [segment["token_ids"] for segment in short["segments"]] == [result.token_ids]
    assert set(short["timings"]) == set(result.timings.as_dict())

    segments, info = tiny_engine.transcribe(long, generation=config)
    assert [(part["start"], part["end"], part["text"]) for part in parts["segments"]] == [
        (segment.start, segment.end, segment.text) for segment in segments
    ]
    assert (parts["dropped_s"], parts["notes"]) == (info.dropped_s, info.notes)
    assert parts["dropped_s"] > 1

    assert (nothing["segments"], nothing["text"], nothing["timings"]["audio_s"]) == ([], "", 0.0)
    assert len(broken["segments"]) >= 2  # what was answered before the file broke off
    assert "cannot be read after" in broken["error"]["message"]
    assert err == [f"error: {document['file']}: {document['error']['message']}" for document in (nothing, broken)]


def test_the_page_describes_every_key(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, speech: Path, long: Path
) -> None:
    """Also those that come later: none may appear without its line."""
    _, (first, second), _ = run(capsys, "transcribe", tiny_bundle, speech, long, "--json", *FEW)
    described = re.findall(r"^\| `(\w+)`", PAGE.read_text().partition("## JSON")[2], re.MULTILINE)
    documents = json.loads(first), json.loads(second)
    keys = {key for document in documents for key in document}
    inner = {key for document in documents for segment in document["segments"] for key in segment}
    assert set(described) == keys | inner | {"type", "message", "audio_s", "total_s"}


# Formats

MARKS = Transcript(
    "talk.wav",
    (
        {"start": 0.0, "end": 1.2345, "text": " <b> & you "},
        {"start": 2.0, "end": 2.0, "text": "two\nlines\tand --> more"},
        {"start": 3.0, "end": 4.0, "text": "  "},
        {"start": 3723.0004, "end": 3724.5, "text": "late"},
    ),
    {"audio_s": 4000.0, "total_s": 1.0},
)
CUES = [
    (0, 1234, "<b> & you"),
    (2000, 2001, "two lines and --> more"),
    (3723000, 3724500, "late"),
]


def cues(blocks: list[str], clock: str) -> list[tuple[int, int, str]]:
    """Of blocks, each a line of times and a line of text; times as milliseconds."""
    found = []
    for block in blocks:
        times, text = block.split("\n")
        match = re.fullmatch(f"{clock} --> {clock}", times)
        assert match, times
        h1, m1, s1, ms1, h2, m2, s2, ms2 = map(int, match.groups())
        assert max(m1, s1, m2, s2) < 60
        found.append((((h1 * 60 + m1) * 60 + s1) * 1000 + ms1, ((h2 * 60 + m2) * 60 + s2) * 1000 + ms2, text))
    return found


def test_srt() -> None:
    """A counter from 1, times with a comma, text, and an empty line between two."""
    content = FORMATS["srt"](MARKS)
    assert content.endswith("\n")
    blocks = content[:-1].split("\n\n")
    assert [block.split("\n", 1)[0] for block in blocks] == ["1", "2", "3"]
    assert cues([block.split("\n", 1)[1] for block in blocks], r"(\d\d):(\d\d):(\d\d),(\d{3})") == CUES


def test_vtt() -> None:
    """The grammar of https://www.w3.org/TR/webvtt1/#syntax: no "-->", "<" or "&" in a cue's text but as references."""
    content = FORMATS["vtt"](MARKS)
    head, *blocks = content[:-1].split("\n\n")
    assert head == "WEBVTT"
    found = cues(blocks, r"(\d{2,}):(\d\d):(\d\d)\.(\d{3})")
    for _, _, text in found:
        assert re.fullmatch(r"(?:[^<>&]|&(?:amp|lt|gt);)+", text)
    assert [(start, end, unescape(text)) for start, end, text in found] == CUES
    assert all(start < end for start, end, _ in found)


def test_tsv() -> None:
    header, *rows = FORMATS["tsv"](MARKS).splitlines()
    assert header == "start\tend\ttext"
    assert [tuple(row.split("\t")) for row in rows] == [(str(start), str(end), text) for start, end, text in CUES]


def test_txt() -> None:
    assert FORMATS["txt"](MARKS) == "<b> & you\ntwo lines and --> more\nlate\n"


@pytest.mark.parametrize(
    ("form", "content"), [("txt", ""), ("srt", ""), ("vtt", "WEBVTT\n"), ("tsv", "start\tend\ttext\n")]
)
def test_nothing_is_said(form: str, content: str) -> None:
    assert FORMATS[form](Transcript("a", (), {"audio_s": 1.0, "total_s": 1.0})) == content


def test_a_failure_is_named_by_its_class() -> None:
    document = Transcript("a", (), {"audio_s": 0.0, "total_s": 0.0}, error=AudioError("no sound")).as_dict()
    assert document["error"] == {"type": "AudioError", "message": "no sound"}


# Files


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_for_each_recording(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, speech: Path, long: Path, tmp_path: Path, form: str
) -> None:
    folder, broken = tmp_path / "new" / "out", tmp_path / "broken.wav"
    broken.write_text("no sound")
    options = ["--output-dir", folder, "--format", form, *FEW]
    code, out, err = run(capsys, "transcribe", tiny_bundle, speech, broken, long, *options)
    assert code == 1
    expected = {f"{speech.stem}.{form}", f"{long.stem}.{form}"}
    assert {path.name for path in folder.iterdir()} == expected  # nothing of the broken one, nothing half
    assert sorted(out) == sorted(f"{path}: {folder / path.stem}.{form}" for path in (speech, long))
    assert len([line for line in err if "s of audio in" in line]) == 2
    assert f"error: {broken}: " in "\n".join(err)
    content = (folder / f"{long.stem}.{form}").read_text()
    if form == "json":
        check_document(json.loads(content))
    else:
        _, shown, _ = run(capsys, "transcribe", tiny_bundle, long, "--format", form, *FEW)
        if form != "txt":  # on standard output, lines of text say whose and when
            assert content.splitlines() == shown


def test_files_that_are_there_are_replaced_on_request(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, speech: Path, tmp_path: Path
) -> None:
    (tmp_path / "w1.srt").write_text("corrected by hand")
    (tmp_path / "other.srt").write_text("mine")
    options = ["--format", "srt", "--output-dir", str(tmp_path), *FEW]
    code, out, err = run(capsys, "transcribe", tiny_bundle, speech, *options)
    assert (code, out) == (0, [])
    assert err == ["1 of 1 recordings have their files; --overwrite does them again"]
    assert (tmp_path / "w1.srt").read_text() == "corrected by hand"
    code, _, _ = run(capsys, "transcribe", tiny_bundle, speech, *options, "--overwrite")
    assert code == 0
    assert (tmp_path / "w1.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:01,300\n")
    assert (tmp_path / "other.srt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_names_that_are_not_text(tmp_path: Path) -> None:
    name, target = "caf\udce9.wav", tmp_path / "a.json"
    write_transcript(replace(MARKS, file=name), {"json": target})
    assert json.loads(target.read_text())["file"] == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.wav", "b.wav", "--format", "srt"], "format srt of 2 recordings is written to a file each; say where with"),
        (["a.wav", "--format", "srt,json"], "formats srt,json are written to a file each; say where with --output-dir"),
        (["a.wav", "--overwrite"], "--overwrite replaces files, and none are written; say where with --output-dir DIR"),
        (["a.wav", "--workers", "2"], "--workers 2 is for transcripts in files; say where with --output-dir DIR"),
        (["a.wav", "-o", "out", "--workers", "0"], "--workers is 0; it must be at least 1"),
        (["-", "--beside"], "standard input (-) has no folder to write beside it; say where with --output-dir DIR"),
        (["a.wav", "--beside", "-o", "out"], "argument --output-dir/-o: not allowed with argument --beside"),
        (["x/a.wav", "y/a.flac", "--output-dir", "out"], "x/a.wav, y/a.flac would both be written to out/a.txt"),
        (["a.wav", "a.wav", "--output-dir", "out"], "a.wav, a.wav would both be written to out/a.txt"),
        (["twins", "-o", "out"], "twins/b.flac, twins/b.wav would both be written to out/b.txt"),
        (["folder.txt", "-o", "out"], "folder.txt has no recordings; expected some that end with .wav, .flac"),
        (["*.flac", "-o", "out"], "*.flac has no recordings; expected some that end with .wav, .flac"),
        (["a.txt", "--output-dir", ".", "--overwrite"], "a.txt would be written, and is one of the recordings"),
        (["a.wav", "--output-dir", "file"], "--output-dir is 'file', which is a file; expected a folder"),
        (["folder.wav", "--output-dir", ".", "--overwrite"], "folder.txt would be written, and is a folder"),
        (["a.wav", "--format", "srt,ass"], "'ass' is no format; expected txt, json, srt, vtt, tsv, or all"),
        (
            ["a.wav", "--format", "srt", "--json"],
            "argument --json: not allowed with argument --output-format/-f/--format",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_written_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("a.txt").touch()
    Path("folder.txt").mkdir()
    Path("twins").mkdir()
    for name in ("b.wav", "b.flac"):
        (Path("twins") / name).touch()
    with pytest.raises(SystemExit) as stopped:
        main(["transcribe", "no-bundle", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_standard_input_has_a_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, speech: Path, tmp_path: Path
) -> None:
    with speech.open("rb") as file:
        monkeypatch.setattr(sys, "stdin", type("Input", (), {"buffer": file, "isatty": lambda self: False})())
        code, out, _ = run(capsys, "transcribe", tiny_bundle, "-", "--output-dir", tmp_path / "out", *FEW)
    assert (code, out) == (0, [f"-: {tmp_path / 'out' / 'stdin.txt'}"])


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_long_recording_has_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, long: Path
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        main(["transcribe", str(tiny_bundle), str(long), "--json", *FEW])
    (document,) = map(json.loads, capsys.readouterr().out.splitlines())
    shown = terminal.getvalue().split("\r\x1b[K")
    counts = [int(re.findall(r"(\d+) of 48 s of audio", line)[0]) for line in shown if line]
    assert counts == [0, *(round(segment["end"]) for segment in document["segments"])]
    assert shown[-1] == ""  # nothing of it is left
