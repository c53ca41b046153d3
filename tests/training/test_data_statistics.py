"""Statistics of data sets: every entry is counted once, and drawn."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from salmonrun.runtime.config import AudioConfig, PromptConfig
from salmonrun.runtime.errors import ConfigError, MissingExtraError
from salmonrun.training.__main__ import main
from salmonrun.training.data.statistics import DataStatistics, EntryStatistics, draw, measure
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset

TASKS = PromptConfig(tasks={"asr": ("<SpeechHere> Write.",), "qa": ("<SpeechHere> {}",)})


def recording(path: Path, seconds: float, rate: int = 8000) -> str:
    soundfile.write(path, np.zeros(round(seconds * rate)), rate)
    return path.name


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """Three usable entries of asr, one of qa, and a problem of each kind that `check_entry` knows."""
    one = recording(tmp_path / "one.wav", 1.0)
    two = recording(tmp_path / "two.flac", 2.5, 16000)
    half = recording(tmp_path / "half.wav", 0.5, 44100)
    long, longer = recording(tmp_path / "long.wav", 31), recording(tmp_path / "longer.wav", 32)
    (tmp_path / "text.wav").write_text("not audio\n" * 10)
    entries: list[Any] = [
        {"path": one, "text": "ab"},
        {"path": two, "text": "abcd", "expand_wav": [one]},
        {"path": half, "text": "a" * 9},
        {"path": two, "text": "yes", "task": "qa", "Q": "is it?"},
        {"path": "gone1.wav", "text": "a"},
        {"path": "gone2.wav", "text": "a"},
        {"path": "text.wav", "text": "a"},
        {"path": recording(tmp_path / "empty.wav", 0), "text": "a"},
        {"path": long, "text": "a"},
        {"path": longer, "text": "a"},
        {"path": one, "text": " "},
        {"path": one, "text": "a", "task": "dance"},
        {"text": "no path"},
    ]
    return write(tmp_path / "first.json", entries)


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return write(tmp_path / "second.json", [{"path": recording(tmp_path / "x.wav", 3.0), "text": "abc"}] * 2)


def write(file: Path, entries: list[Any]) -> Path:
    file.write_text(json.dumps({"annotation": entries}))
    return file


def test_entries_are_measured(first: Path) -> None:
    statistics = measure([first], None, TASKS, AudioConfig())
    with_gap: Any = pytest.approx(3.6)  # the gap of 0.1 s is heard, too
    assert statistics.usable == (
        EntryStatistics(str(first), "asr", 1.0, (8000,), 2),
        EntryStatistics(str(first), "asr", with_gap, (16000, 8000), 4),
        EntryStatistics(str(first), "asr", 0.5, (44100,), 9),
        EntryStatistics(str(first), "qa", 2.5, (16000,), 3),
    )
    assert statistics.min_s == 1.0


def test_table(first: Path, second: Path) -> None:
    lines = measure([first, second], None, TASKS, AudioConfig()).table().splitlines()
    cells = [line.replace("/", " ").split() for line in lines]
    name = str(first).replace("/", " ").split()
    other = str(second).replace("/", " ").split()
    assert cells[1] == [*name, "asr", "3", "0.00", "0.5", "1.0", "3.6", "2", "4", "9"]
    assert cells[2] == [*name, "qa", "1", "0.00", "2.5", "2.5", "2.5", "3", "3", "3"]
    assert cells[3] == [*other, "asr", "2", "0.00", "3.0", "3.0", "3.0", "3", "3", "3"]
    assert cells[4] == ["all", "6", "0.00", "0.5", "2.8", "3.6", "2", "3", "9"]
    assert lines[5:9] == [
        "sample rate 8000 Hz: 4",
        "sample rate 16000 Hz: 2",
        "sample rate 44100 Hz: 1",
        "1 entries shorter than 1 s, to be padded with zeros",
    ]


def test_hours() -> None:
    rows = tuple(EntryStatistics("a.json", "asr", seconds, (16000,), 5) for seconds in (3600.0, 5400.0))
    (row,) = [line for line in DataStatistics(rows, (), (), 1.0).table().splitlines() if line.startswith("a.json")]
    assert row.split()[2:4] == ["2", "2.50"]


def test_problems_are_counted_by_reason(first: Path, second: Path) -> None:
    lines = measure([second, first], None, TASKS, AudioConfig()).table().splitlines()
    assert [line for line in lines if "unusable" in line][:2] == [
        f"2 unusable: FILE does not exist; the first is {first}: entry 4",
        f"2 unusable: N s of audio; the model hears N s; the first is {first}: entry 8",
    ]
    rest = {line.split(": ")[1].split(" (")[0].split(";")[0]: line[-2:] for line in lines if line.startswith("1 unus")}
    assert rest == {
        "FILE cannot be read as audio": " 6",
        "FILE is empty": " 7",
        "the text is empty": "10",
        "unknown task 'dance'": "11",
        "path is missing": "12",
    }


def test_without_prompts_the_recordings_alone_are_checked(first: Path) -> None:
    with_prompts, without = (measure([first], None, prompts, AudioConfig()) for prompts in (TASKS, None))
    assert [row.task for row in without.usable] == ["asr", "asr", "asr", "qa", "asr", "dance"]
    assert {problem.index for problem in with_prompts.problems} - {problem.index for problem in without.problems} == {
        10,
        11,
    }


def test_nothing_usable(tmp_path: Path) -> None:
    statistics = measure([write(tmp_path / "bad.json", [{"path": "none.wav", "text": "a"}])], None, None, AudioConfig())
    assert statistics.table().splitlines()[0] == "no usable entry"
    with pytest.raises(ConfigError, match="no usable entry"):
        draw(statistics, tmp_path / "chart.png")


def test_chart(first: Path, second: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    draw(measure([first, second], None, TASKS, AudioConfig()), tmp_path / "chart.png")
    pixels = imread(tmp_path / "chart.png")
    assert min(pixels.shape[:2]) > 800
    assert len(np.unique((pixels * 255).round().astype(np.uint8).view(np.uint32))) > 10  # text and bars of two tasks


def test_chart_shows_the_numbers(first: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw(measure([first, second], None, TASKS, AudioConfig()), tmp_path / "chart.png")
    (figure,) = drawn
    counts, durations, texts = figure.axes
    assert [bar.get_width() for bars in counts.containers for bar in bars] == [3, 2, 1, 0]  # asr, then qa
    assert [label.get_text()[-10:] for label in counts.get_yticklabels()] == ["first.json", "econd.json"]
    legend = counts.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["asr", "qa"]
    for axes in (durations, texts):
        assert [sum(bar.get_height() for bar in bars) for bars in axes.containers] == [5, 1]
    for axes in figure.axes:
        assert axes.get_title()
        assert axes.get_xlabel()
    assert "6 entries, 0.00 hours; 9 unusable" in figure.get_suptitle()


def test_chart_of_another_kind(second: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"chart\.gif'; expected one that ends in \.png"):
        draw(measure([second], None, None, AudioConfig()), tmp_path / "chart.gif")


def test_without_matplotlib(
    second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["data", "report", str(second)]) == 0  # the table needs none
    capsys.readouterr()
    with pytest.raises(MissingExtraError, match=r"--out needs matplotlib: pip install 'salmonrun\[plot\]'"):
        draw(measure([second], None, None, AudioConfig()), tmp_path / "chart.png")


def test_command(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, chart = tmp_path / "checkpoint", tmp_path / "chart.png"
    init_checkpoint(preset("tiny"), checkpoint)
    assert main(["data", "report", str(first), "--checkpoint", str(checkpoint), "--out", str(chart)]) == 0
    printed = capsys.readouterr().out
    assert "unknown task 'dance'" in printed
    assert printed.endswith(f"{chart}: chart of the distributions\n")
    assert chart.read_bytes().startswith(b"\x89PNG")
