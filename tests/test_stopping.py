"""Ctrl-C and SIGTERM while a command still imports what it needs: a line and an exit status, no traceback."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from salmonrun.runtime.commands.main import Command, run_command
from salmonrun.stopping import _importer, leaving_at_once

ROOT = Path(__file__).parents[1]
EXPORT = ("export", "nowhere", "bundle")
FINETUNE = ("finetune", "--cfg-path", "nowhere.yaml")
ENDS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


def imports(stderr: Iterator[str]) -> Iterator[str]:
    """Names of modules as they have been imported."""
    for line in stderr:
        if line.startswith("import time:"):
            yield line.rpartition("|")[2].strip()


@pytest.mark.parametrize(
    ("number", "argv", "module"),
    [
        (signal.SIGINT, EXPORT, "argparse"),
        (signal.SIGTERM, EXPORT, "salmonrun.runtime.errors"),
        (signal.SIGINT, EXPORT, "numpy"),
        (signal.SIGTERM, EXPORT, "torch.nn.modules"),
        (signal.SIGINT, EXPORT, "transformers"),
        (signal.SIGINT, FINETUNE, "torch.nn.modules"),
        (signal.SIGTERM, FINETUNE, "transformers"),
    ],
    ids=str,
)
def test_a_signal_that_comes_early(number: signal.Signals, argv: tuple[str, ...], module: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "salmonrun", *argv],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, Ctrl-C is ignored, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    assert process.stderr
    assert any(name == module for name in imports(process.stderr)), module
    process.send_signal(number)
    out, err = process.communicate()
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert (process.returncode, said, out) == (ENDS[number][0], [ENDS[number][1]], "")


def test_work_that_has_begun_is_unwound(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a library imports in the middle of it."""
    removed = []

    def work(_: object) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            removed.append("what is half-made")
        return 0

    module = "salmonrun.runtime.commands.check"
    monkeypatch.setattr(f"{module}.add_arguments", lambda parser: parser.set_defaults(run=work))
    assert run_command(Command("check", module, ""), "check", []) == 143
    assert removed == ["what is half-made"]
    assert capsys.readouterr().err == "terminated\n"


def test_who_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "outer_of_two.py").write_text("import inner_of_two\n")
    (tmp_path / "inner_of_two.py").write_text("import sys\nfrom salmonrun.stopping import _importer\n")
    with (tmp_path / "inner_of_two.py").open("a") as file:
        file.write("ASKED = _importer(sys._getframe())\n")
    import_of = {"__name__": "salmonrun.training.commands.some"}
    exec("import outer_of_two", import_of)
    assert sys.modules["inner_of_two"].ASKED == "salmonrun.training.commands.some"
    assert _importer(sys._getframe()) in ("", __name__, "_pytest.python")


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in ENDS]
    with leaving_at_once():
        assert [signal.getsignal(number) for number in ENDS] != before
    assert [signal.getsignal(number) for number in ENDS] == before
