"""`salmonrun batch`: killed and run again, no recording is lost or there twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")
import numpy as np
import psutil
import soundfile

from salmonrun.runtime import Engine
from salmonrun.runtime.errors import AudioNotFoundError, ConfigError
from salmonrun.runtime.server.ray.batch import Place, Work, left
from tests.ray.conftest import RECORDINGS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
SENTENCES = ("digits", "heating", "shopping", "wake")
COUNT = 200
KILLED_AT = 60


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Sentences with silence of another length behind each, in folders, and a file that is no recording's."""
    folder = tmp_path / "in"
    (folder / "deep" / "er").mkdir(parents=True)
    for number in range(COUNT):
        pcm, rate = soundfile.read(RECORDINGS / f"{SENTENCES[number % 4]}.flac")
        where = folder / "deep" / "er" if number % 3 else folder
        soundfile.write(where / f"{number:03}.flac", np.append(pcm, np.zeros(100 * number)), rate)
    (folder / "notes.txt").write_text("no recording")
    return folder


def command(bundle: Path, inputs: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "salmonrun", "batch", *map(str, (bundle, inputs, "--output", output)), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local"}


def written(output: Path) -> dict[str, int]:
    """The transcripts of a folder, and when each was written."""
    files = (path for path in output.rglob("*") if path.is_file() and path.suffix != ".part")
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in files}


def workers(run: subprocess.Popen[Any]) -> list[psutil.Process]:
    """Actors of a run that hold engines."""
    children = psutil.Process(run.pid).children(recursive=True)
    return [child for child in children if "ray::MapWorker" in " ".join(child.cmdline())]


def wait_for(output: Path, count: int) -> None:
    while len(written(output)) < count:
        time.sleep(0.05)


def test_killed_and_run_again(bundle: Path, inputs: Path, tmp_path: Path) -> None:
    """First the whole run is killed; then, in the second, the process of an engine."""
    output = tmp_path / "out"
    first = subprocess.Popen(command(bundle, inputs, output), env=environment(), stdout=subprocess.DEVNULL)
    wait_for(output, KILLED_AT)
    orphans = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(orphans, timeout=120)  # Ray ends them, a moment later
    assert not alive
    before = written(output)
    assert KILLED_AT <= len(before) < COUNT

    second = subprocess.Popen(command(bundle, inputs, output), env=environment(), stdout=subprocess.PIPE, text=True)
    wait_for(output, len(before) + 20)
    os.kill(workers(second)[0].pid, signal.SIGKILL)
    told, _ = second.communicate(timeout=600)
    assert second.returncode == 0
    done = [line for line in told.splitlines() if "transcripts of" in line]
    assert len(done) == 1
    assert done[0].startswith(f"{COUNT - len(before)} transcripts of ")

    names = {str(path.relative_to(inputs)) for path in inputs.rglob("*.flac")}
    assert set(written(output)) == {f"{name}.json" for name in names}
    assert before.items() <= written(output).items(), "a recording was transcribed twice"
    with Engine.load(bundle) as engine:
        said = [" ".join(p.text for p in engine.transcribe(RECORDINGS / f"{one}.flac")[0]) for one in SENTENCES]
    for name in names:
        transcript = json.loads((output / f"{name}.json").read_text())
        assert (transcript["file"], transcript["error"]) == (name, None)
        assert transcript["text"] == said[int(Path(name).stem) % 4]

    third = subprocess.run(command(bundle, inputs, output), env=environment(), capture_output=True, text=True)
    assert (third.returncode, third.stdout) == (0, "0 recordings have no transcript yet\n")


def test_what_cannot_be_read_is_told_and_tried_again(bundle: Path, tmp_path: Path) -> None:
    inputs, output = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    shutil.copy(RECORDINGS / "wake.flac", inputs / "good.flac")
    (inputs / "bad.wav").write_bytes(b"no recording")
    asked = command(bundle, inputs, output, "--format", "srt")
    done = subprocess.run(asked, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "1 transcripts of " in done.stdout
    assert "error: bad.wav: " in done.stderr
    assert set(written(output)) == {"good.flac.srt"}
    shutil.copy(RECORDINGS / "bell.flac", inputs / "bad.wav")
    again = subprocess.run(asked, env=environment(), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert set(written(output)) == {"good.flac.srt", "bad.wav.srt"}


def test_places() -> None:
    with pytest.raises(ConfigError, match="'nosuch://a' is no place of files"):
        Place.of("nosuch://a")
    assert Place.of("a/b").path == str(Path("a/b").absolute())


def test_no_recordings(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no recording")
    with pytest.raises(AudioNotFoundError, match=r"has no recordings; expected files that end in \.aif, "):
        left(Work("bundle", Place.of(str(tmp_path)), Place.of(str(tmp_path / "out"))))


def test_a_transcript_that_was_being_written_is_none(tmp_path: Path) -> None:
    place = Place.of(str(tmp_path / "out"))
    place.write("deep/a.wav.json", "{}")
    (tmp_path / "out" / "deep" / "b.wav.json.0.part").write_text("{")
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.wav", "a.flac", "b.wav"):
        (tmp_path / "in" / "deep" / name).touch()
    assert left(Work("bundle", Place.of(str(tmp_path / "in")), place)) == ["deep/a.flac", "deep/b.wav"]
