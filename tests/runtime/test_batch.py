"""`salmonrun transcribe` over many recordings: folders, several at once, runs that were killed, files that are bad."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from salmonrun.runtime import Engine, GenerationConfig, Result
from salmonrun.runtime.__main__ import main
from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.commands.transcripts.batch_progress import BatchProgress
from salmonrun.runtime.commands.transcripts.files import Job, claimed
from salmonrun.runtime.commands.transcripts.recordings import find_recordings
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.latency.recording import STORY
from salmonrun.runtime.transcript import FORMATS, one_line
from tests.helpers.commands import run

FEW = ["--max-new-tokens", "8"]
KILL_S = 120  # until so many files should be there, on a busy machine


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 recordings of 1 to 2.5 s in three folders."""
    folder = tmp_path_factory.mktemp("talks")
    story, rate = soundfile.read(STORY, stop=60 * SAMPLE_RATE)
    for number in range(30):
        place = folder / ("", "monday", "monday/late")[number % 3]
        place.mkdir(exist_ok=True)
        start, length = 14_000 * number, 16_000 + 800 * number
        soundfile.write(place / f"{number:02}.wav", story[start : start + length], rate)
    return folder


@pytest.fixture(scope="module")
def alone(tiny_engine: Engine, talks: Path) -> dict[str, Result]:
    """By the recording's place: what the engine says when it is asked about one after the other."""
    config = GenerationConfig(max_new_tokens=8)
    return {
        path.relative_to(talks).with_suffix("").as_posix(): tiny_engine.generate(path, config=config)
        for path in talks.rglob("*.wav")
    }


def tokens(results: dict[str, Result]) -> dict[str, list[int]]:
    return {place: result.token_ids for place, result in results.items()}


def answers(folder: Path) -> dict[str, list[int]]:
    """By the recording's place below the folder: the tokens in its JSON."""
    return {
        path.relative_to(folder).with_suffix("").as_posix(): [
            token for segment in json.loads(path.read_text())["segments"] for token in segment["token_ids"]
        ]
        for path in sorted(folder.rglob("*.json"))
    }


# Which recordings


def test_folders_and_patterns(talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = find_recordings([str(talks)])
    assert len(everything) == 30
    assert [str(one.place) for one in everything[:2]] == ["00", "03"]
    assert {str(one.place) for one in everything} == {
        path.relative_to(talks).with_suffix("").as_posix() for path in talks.rglob("*.wav")
    }
    late = find_recordings([f"{talks}/**/late/*.wav"])
    assert [str(one.place) for one in late] == [f"monday/late/{number:02}" for number in range(2, 30, 3)]
    monkeypatch.chdir(talks)
    assert [str(one.place) for one in find_recordings(["0*.wav"])] == ["00", "03", "06", "09"]
    assert [(one.file, str(one.place)) for one in find_recordings(["monday/01.wav", "-", "gone.v2.wav"])] == [
        ("monday/01.wav", "01"),
        ("-", "stdin"),
        ("gone.v2.wav", "gone.v2"),
    ]


def test_what_a_folder_holds_beside_recordings(tmp_path: Path) -> None:
    """Hidden files and other kinds are no recordings; those that cannot be read are, and will be told."""
    for name in ("a.WAV", "b.m4a", "notes.txt", ".hidden.wav", ".git/x.wav", "c[1].wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path)
    assert [Path(one.file).name for one in find_recordings([str(tmp_path)])] == ["a.WAV", "b.m4a", "c[1].wav"]
    assert len(find_recordings([str(tmp_path / "c[1].wav")])) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty has no recordings; expected some that end with \.wav, "):
        find_recordings([str(tmp_path / "empty")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all folders")
def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "closed").mkdir(0)
    with pytest.raises(PermissionError):
        find_recordings([str(tmp_path)])


# Files


def test_all_formats_as_the_recordings_lie(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, talks: Path, alone: dict[str, Result], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, lines, err = run(capsys, "transcribe", tiny_bundle, talks, "-f", "all", "-o", out, *FEW)
    assert code == 0, err
    assert len(lines) == 30
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    places = [one.place for one in find_recordings([str(talks)])]
    assert written == {f"{place}.{form}" for place in places for form in FORMATS}
    assert re.fullmatch(
        r"30 of 30 recordings written, 0\.\d min of audio in [\d.:]+( s)?, real-time factor \d+\.\d{3}", err[-1]
    )
    assert answers(out) == tokens(alone)  # four at once
    assert all((out / f"{place}.txt").read_text().strip() == one_line(r.text) for place, r in alone.items())


@pytest.mark.parametrize("workers", [1, 8])
def test_the_number_of_workers_changes_no_answer(
    capsys: pytest.CaptureFixture[str],
    tiny_bundle: Path,
    talks: Path,
    alone: dict[str, Result],
    tmp_path: Path,
    workers: int,
) -> None:
    run(capsys, "transcribe", tiny_bundle, talks, "-f", "json", "-o", tmp_path / "many", "--workers", workers, *FEW)
    assert answers(tmp_path / "many") == tokens(alone)


def test_without_files_the_answers_are_the_same(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, talks: Path, alone: dict[str, Result]
) -> None:
    code, lines, _ = run(capsys, "transcribe", tiny_bundle, talks, "--json", *FEW)
    assert code == 0
    assert tokens(alone) == {
        Path(document["file"]).relative_to(talks).with_suffix("").as_posix(): document["segments"][0]["token_ids"]
        for document in map(json.loads, lines)
    }


def test_beside_the_recordings_and_what_is_missing(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, speech: Path, tmp_path: Path
) -> None:
    for name in ("a.wav", "sub/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(speech, tmp_path / name)
    (tmp_path / "a.srt").write_text("corrected by hand")
    asked = ("transcribe", tiny_bundle, tmp_path, "--beside", "-f", "srt,json", *FEW)
    code, lines, _ = run(capsys, *asked)
    assert code == 0
    assert sorted(lines) == [
        f"{tmp_path / 'a.wav'}: {tmp_path / 'a.json'}",
        f"{tmp_path / 'sub/b.wav'}: {tmp_path / 'sub/b.srt'}, {tmp_path / 'sub/b.json'}",
    ]
    assert (tmp_path / "a.srt").read_text() == "corrected by hand"
    code, lines, err = run(capsys, *asked)
    assert (code, lines, err) == (0, [], ["2 of 2 recordings have their files; --overwrite does them again"])
    code, lines, _ = run(capsys, *asked, "--overwrite")
    assert (code, len(lines)) == (0, 2)
    assert (tmp_path / "a.srt").read_text().startswith("1\n00:00:00,000")


def test_bad_files_are_told_and_the_others_done(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, speech: Path, tmp_path: Path
) -> None:
    talks, out = tmp_path / "talks", tmp_path / "out"
    talks.mkdir()
    for name in ("a.wav", "c.wav", "e.wav"):
        shutil.copyfile(speech, talks / name)
    (talks / "b.wav").write_text("no sound")
    (talks / "d.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    soundfile.write(talks / "f.wav", np.zeros(0), SAMPLE_RATE)
    gone = talks / "gone.wav"
    code, lines, err = run(capsys, "transcribe", tiny_bundle, talks, gone, "-o", out, *FEW)
    assert code == 1
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == ["a.txt", "c.txt", "e.txt"]
    assert len(lines) == 3
    errors = {line.split(": ")[1] for line in err if line.startswith("error: ")}
    assert errors == {str(talks / name) for name in ("b.wav", "d.m4a", "f.wav", "gone.wav")}
    assert err[-6].startswith("3 of 7 recordings written, ")
    assert err[-5] == "4 failed:"
    assert {line.split(": ")[0].strip() for line in err[-4:]} == errors
    again, lines, err = run(capsys, "transcribe", tiny_bundle, talks, gone, "-o", out, *FEW)
    assert (again, lines) == (1, [])  # what failed is tried again, what is done is not
    assert err[0] == "3 of 7 recordings have their files; --overwrite does them again"


def test_a_name_that_cannot_be_written_fails_alone(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, speech: Path, tmp_path: Path
) -> None:
    long = tmp_path / f"{'n' * 250}.wav"
    for path in (long, tmp_path / "a.wav"):
        shutil.copyfile(speech, path)
    code, lines, err = run(capsys, "transcribe", tiny_bundle, tmp_path, "--beside", *FEW)
    assert (code, len(lines)) == (1, 1)
    assert err[-1].startswith(f"  {long}: [Errno 36] File name too long")


def test_a_full_disk_ends_the_run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tiny_bundle: Path,
    talks: Path,
    tmp_path: Path,
) -> None:
    """What would follow could not be written either. Nothing is left of the file that did not fit."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    code, lines, err = run(capsys, "transcribe", tiny_bundle, talks, "-o", tmp_path / "out", *FEW)
    assert (code, lines, err[-1]) == (1, [], "error: [Errno 28] No space left on device")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


# Runs that are stopped


def start(bundle: Path, talks: Path, out: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "salmonrun", "transcribe", bundle, talks, "-f", "json,srt", "-o", out, *FEW]
    return subprocess.Popen(
        list(map(str, argv)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, Ctrl-C is ignored, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def stop_in_the_middle(process: subprocess.Popen[str], out: Path, number: signal.Signals) -> None:
    deadline = time.monotonic() + KILL_S
    while sum(path.with_suffix(".srt").exists() for path in out.rglob("*.json")) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_run_that_was_stopped_goes_on(
    tiny_bundle: Path, talks: Path, alone: dict[str, Result], tmp_path: Path, number: signal.Signals
) -> None:
    """No file is half, none is done twice, none is lost, and the answers are those of one by one."""
    out = tmp_path / "out"
    killed = start(tiny_bundle, talks, out)
    stop_in_the_middle(killed, out, number)
    _, err = killed.communicate(timeout=KILL_S)
    codes = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
    assert killed.returncode == codes[number], err
    if number != signal.SIGKILL:
        assert err.splitlines()[-1] == {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
        assert not list(out.rglob(".*.partial"))
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*.[js]*") if path.name[0] != "."
    }
    done = {place for place in answers(out) if (out / f"{place}.srt").exists()}
    assert 5 <= len(done) < 30

    resumed = start(tiny_bundle, talks, out)
    lines, err = resumed.communicate(timeout=KILL_S)
    assert resumed.returncode == 0, err
    assert err.splitlines()[0] == f"{len(done)} of 30 recordings have their files; --overwrite does them again"
    again = {Path(line.split(": ")[0]).relative_to(talks).with_suffix("").as_posix() for line in lines.splitlines()}
    assert len(lines.splitlines()) == len(again) == 30 - len(done)
    assert not again & done
    assert all((path.stat().st_mtime_ns, path.read_bytes()) == what for path, what in before.items())
    assert not list(out.rglob(".*.partial"))
    assert answers(out) == tokens(alone)


# Two runs at once


def test_what_another_run_writes_is_left_to_it(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, speech: Path, tmp_path: Path
) -> None:
    talks, out = tmp_path / "talks", tmp_path / "out"
    talks.mkdir()
    for name in ("a.wav", "b.wav"):
        shutil.copyfile(speech, talks / name)
    asked = ("transcribe", tiny_bundle, talks, "-o", out, *FEW)
    with claimed(Job(str(talks / "a.wav"), {"txt": out / "a.txt"})):
        code, lines, err = run(capsys, *asked)
        assert (code, lines) == (1, [f"{talks / 'b.wav'}: {out / 'b.txt'}"])
        assert err[-1] == (
            f"  {talks / 'a.wav'}: another run of salmonrun transcribe is writing {out / 'a.txt'}: leave it to that "
            "one, or choose another --output-dir"
        )
        (out / "a.txt").write_text("what it said")
    assert sorted(path.name for path in out.iterdir()) == ["a.txt", "b.txt"]
    with claimed(Job("a.wav", {"txt": out / "a.txt"})) as left:
        assert left == {}  # it was written since it was planned
    with claimed(Job("a.wav", {"txt": out / "a.txt"}, overwrite=True)) as left:
        assert left == {"txt": out / "a.txt"}


def test_two_runs_share_the_work(tiny_bundle: Path, talks: Path, alone: dict[str, Result], tmp_path: Path) -> None:
    """Each recording is written once, by the one or the other; what one was at when the other came to it is told."""
    both = [start(tiny_bundle, talks, tmp_path / "out") for _ in range(2)]
    told = [process.communicate(timeout=KILL_S) for process in both]
    written = [line.split(": ")[0] for lines, _ in told for line in lines.splitlines()]
    assert len(written) == len(set(written)) == 30
    for process, (_, err) in zip(both, told, strict=True):
        failed = [line for line in err.splitlines() if line.startswith("error: ")]
        assert process.returncode == bool(failed)
        assert all("another run of salmonrun transcribe is writing" in line for line in failed)
    assert answers(tmp_path / "out") == tokens(alone)
    assert not list((tmp_path / "out").rglob(".*.partial"))


# Progress


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = BatchProgress([60.0, 120.0, 0.0], sys.stdout, sys.stderr, clock)
    clock.now += 4
    progress.ended(Job("a", {"txt": Path("a.txt"), "srt": Path("a.srt")}), 60.0, "60 s of audio", "")
    clock.now += 8
    progress.ended(Job("c", {"txt": Path("c.txt")}), 0.0, "", "no sound")
    clock.now += 12
    progress.ended(Job("b", {"txt": Path("b.txt")}), 120.0, "120 s of audio", "")
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["a: a.txt, a.srt", "b: b.txt"]
    assert printed.err.splitlines() == [
        "  60 s of audio",
        "error: c: no sound",
        "  2 of 3 files, 1.0 of 3.0 min of audio, real-time factor 0.200, 24 s left",
        "  120 s of audio",
    ]
    assert progress.total() == "3.0 min of audio in 24 s, real-time factor 0.133"


def test_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, talks: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["transcribe", str(tiny_bundle), str(talks), "-o", str(tmp_path / "out"), *FEW]) == 0
    shown = capsys.readouterr().err.split("\r\x1b[K")
    counts = [int(count) for line in shown if (count := "".join(re.findall(r"(\d+) of 30 files", line)))]
    assert counts == list(range(1, 31))
    assert any("░" in line for line in shown)
    assert shown[-1].startswith("30 of 30 recordings written")


def test_a_long_recording_moves_the_bar(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path) -> None:
    """It is answered about part by part, beside a short one."""
    story, rate = soundfile.read(STORY, stop=10 * SAMPLE_RATE)
    soundfile.write(tmp_path / "long.wav", np.concatenate([story, np.zeros(2 * rate)] * 4), rate)
    soundfile.write(tmp_path / "short.wav", story[: 2 * rate], rate)
    code, lines, err = run(capsys, "transcribe", tiny_bundle, tmp_path, "--beside", "-f", "json", *FEW)
    assert (code, len(lines)) == (0, 2), err
    parts = json.loads((tmp_path / "long.json").read_text())["segments"]
    alone, _ = Engine.load(tiny_bundle).transcribe(tmp_path / "long.wav", generation=GenerationConfig(max_new_tokens=8))
    assert [part["token_ids"] for part in parts] == [segment.token_ids for segment in alone]
    assert len(parts) >= 3


def test_no_worker_goes_on_when_one_run_ends(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, talks: Path, tmp_path: Path
) -> None:
    """A reader of standard output that is gone ends all threads; what is written then is whole."""
    argv = [sys.executable, "-m", "salmonrun", "transcribe", tiny_bundle, talks, "-f", "json", "-o", tmp_path, *FEW]
    process = subprocess.Popen(list(map(str, argv)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(KILL_S), "Traceback" in err) == (0, False), err
    assert 1 <= len(answers(tmp_path)) <= 30
    assert not list(tmp_path.rglob(".*.partial"))
