"""Calls of the operating system that fail, a few of each kind; `python -m tests.faults` has all of them."""

import shutil
from pathlib import Path

import pytest

from tests.faults.__main__ import KINDS, attack, judged, serving, spread
from tests.kill_storm import Victim, checkpoint_digest

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: the injector cannot be built")


@pytest.mark.tools
def test_a_checkpoint_is_written_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few faults of every kind in `salmonrun init`; how many were tried is said."""
    victim = Victim("init", lambda out: ["init", out, "--preset", "tiny"], checkpoint_digest, "checkpoint")
    with serving(tmp_path) as process:
        assert attack(process, victim, tmp_path, ("write", "rename", "open"), most=3) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert all("'refused': " in line for line in said)


def test_numbers_are_spread() -> None:
    assert spread(3, 5) == [1, 2, 3]
    assert spread(100, 4) == [1, 34, 67, 100]
    assert spread(0, 4) == []


@pytest.mark.parametrize(
    ("status", "said", "wrong"),
    [
        (0, "", 0),
        (1, "error: no space left", 0),
        (1, "Traceback (most recent call last):\nerror: OSError", 1),
        (1, "OSError", 1),
        (70, "Traceback ...\nValueError: 3", 1),
        (-11, "", 1),
    ],
)
def test_how_a_command_may_end(status: int, said: str, wrong: int) -> None:
    assert len(judged({"status": status, "seen": 5, "said": said}, 5)) == wrong


def test_kinds_are_bits_of_their_own() -> None:
    assert sum(KINDS.values()) == 2 ** len(KINDS) - 1
