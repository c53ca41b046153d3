"""What `make docs-test` shows while it runs, and when it stops waiting."""

import os
import time
from pathlib import Path

import pytest

from tests.helpers.watched import run_watched

BASH = ["bash", "-euo", "pipefail", "-c"]


def test_each_command_is_shown_with_its_seconds(tmp_path: Path) -> None:
    shown: list[str] = []
    done = run_watched(BASH, "echo one\nsleep 0.3 | cat\n(exit 3)", tmp_path, os.environ, 60, shown.append)
    assert (done.returncode, done.stdout, done.stderr) == (3, "one\n", "")
    lines = "".join(shown).splitlines()
    assert [line.rsplit("  ", 1)[0] for line in lines[:1]] == ["echo one"]
    assert {"sleep 0.3", "cat"} <= {line.rsplit("  ", 1)[0] for line in lines}
    assert all(line.endswith(" s") for line in lines)


def test_what_is_no_shell_is_one_command(tmp_path: Path) -> None:
    shown: list[str] = []
    done = run_watched(["/usr/bin/env", "python3", "-c"], "print(3)", tmp_path, os.environ, 60, shown.append)
    assert (done.returncode, done.stdout) == (0, "3\n")
    assert len(shown) == 1


def test_the_limit_is_a_commands_and_not_the_scripts(tmp_path: Path) -> None:
    run_watched(BASH, "sleep 0.7\n" * 3, tmp_path, os.environ, 2, lambda _: None)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^sleep 60 took more than 1 s$"):
        run_watched(BASH, "true\nsleep 60\ntrue", tmp_path, os.environ, 1, lambda _: None)
    assert time.monotonic() - began < 30
