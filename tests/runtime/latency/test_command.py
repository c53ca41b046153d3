"""The command, through main(): what it prints where, what it writes, and its exit codes."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from salmonrun.runtime.__main__ import main
from salmonrun.runtime.commands import latency
from salmonrun.runtime.commands.progress import ProgressLine
from salmonrun.runtime.latency.config import LatencyConfig
from salmonrun.runtime.latency.sampling import StopRule
from tests.helpers.latencies import fake_time

QUICK = ["--lengths", "1", "--num-beams", "1", "--tokens", "3", "--time-limit", "0"]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    code = main(["latency", *(str(argument) for argument in arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_measure_write_draw_and_limit(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, speech: Path, tmp_path: Path
) -> None:
    files = ["--json", tmp_path / "found.json", "--plot", tmp_path / "found.png", "--recording", speech]
    limits = "total=1000,ttft_p99=0.000001,rss_peak_mb=1"
    code, out, err = run(capsys, tiny_bundle, *QUICK, *files, "--fail-over", limits)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0].startswith("tiny: whisper fp32")
    exceeded = [line for line in lines if line.startswith("EXCEEDED: ")]
    assert [line.split()[1] for line in exceeded] == ["ttft_p99", "rss_peak_mb"]
    assert exceeded[1].endswith("the limit is 1")
    stored = json.loads((tmp_path / "found.json").read_text())
    assert stored["config"]["tokens"] == 3
    assert stored["config"]["lengths_s"] == [1.0]
    assert stored["load_s"] > 0
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


def test_within_the_limits(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    code, out, err = run(capsys, tiny_bundle, *QUICK, "--fail-over", "total=1000")
    assert (code, err) == (0, "")
    assert "EXCEEDED" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lengths", "1,100"], "recordings of 100 s; this bundle hears 30 s at once"),
        (["--recording", "/gone.wav"], "'/gone.wav' does not exist"),
        (["--baseline", "checkpoint", "--protocol", "load"], "no baseline for protocol 'load'"),
        (["--task", "sing"], "unknown task 'sing'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_options(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_bundle: Path,
    options: list[str],
    message: str,
) -> None:
    """All are refused before anything is measured."""
    monkeypatch.delattr("salmonrun.runtime.engine.Engine.generate")
    code, out, err = run(capsys, tiny_bundle, *QUICK, *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ")
    assert message in err


def test_a_picture_is_refused_before_it_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run(capsys, tmp_path / "no-bundle", "--plot", tmp_path / "found.png")
    assert (code, out) == (1, "")
    assert err == "error: --plot needs matplotlib: pip install 'salmonrun[plot]'\n"


@pytest.mark.parametrize("options", [["--concurrency", "1.5"], ["--lengths", ""], ["--pace", "slow"], []])
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["latency", *(["bundle", *options] if options else [])])
    assert stopped.value.code == 2
    assert "usage: python -m salmonrun.runtime latency" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["latency", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for said in ("a median with its 95 % interval", "reference (10 s of noise", "default: 2,5,10,20,30", "example: "):
        assert said in text


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    def interrupt(*arguments: Any, progress: Any, **options: Any) -> None:
        progress("request", 3, 1, 2)
        raise KeyboardInterrupt

    monkeypatch.setattr("salmonrun.runtime.latency.run.measure", interrupt)
    code, out, err = run(capsys, tiny_bundle, *QUICK)
    assert (code, out, err) == (130, "", "interrupted\n")


# The line that says how far it is


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    clock, out = fake_time(monkeypatch), Terminal()
    line = ProgressLine(out)
    clock.advance(12.0)
    line.show("request: 3 repetitions", 0.5)
    assert out.getvalue() == "\r\x1b[K" + "█" * 12 + "░" * 12 + "   12 s  request: 3 repetitions"
    line.show("done", 7.0)
    assert out.getvalue().endswith("\r\x1b[K" + "█" * 24 + "   12 s  done")
    line.close()
    assert out.getvalue().endswith("done\r\x1b[K")


@pytest.mark.parametrize(("out", "term"), [(io.StringIO(), "xterm"), (Terminal(), "dumb")])
def test_no_progress_where_it_cannot_be_erased(monkeypatch: pytest.MonkeyPatch, out: io.StringIO, term: str) -> None:
    monkeypatch.setenv("TERM", term)
    line = ProgressLine(out)
    line.show("request: 3 repetitions", 0.5)
    line.close()
    assert out.getvalue() == ""


def test_progress_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is known, or by the time that is spent, whichever is more; each protocol has the same share."""
    clock, shares = fake_time(monkeypatch), list[float]()

    class Line(ProgressLine):
        def show(self, text: str, share: float) -> None:
            shares.append(share)

    config = LatencyConfig(protocols=("request", "stream"), rule=StopRule(time_limit_s=64.0))
    shown = latency._shown(Line(), config)
    shown("request", 1, 0, 4)
    clock.advance(16.0)
    shown("request", 2, 0, 4)
    shown("request", 3, 2, 4)
    clock.advance(64.0)
    shown("request", 4, 2, 4)
    shown("stream", 1, 0, 1)
    shown("stream", 2, 1, 1)
    assert shares == [0.0, 0.125, 0.25, 0.5, 0.5, 1.0]
