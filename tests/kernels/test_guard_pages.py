"""The kernels touch no byte in front of or behind the arrays they are given: there a page is that nobody may touch."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.guard_pages import EDGES, Edge

native: Any = pytest.importorskip("salmonrun.kernels.cpu._native")
ROOT = Path(__file__).parents[2]


def run(instruction_set: str, edge: Edge) -> "subprocess.CompletedProcess[str]":
    """In a process of its own: a crash is that one's."""
    command = [sys.executable, "-m", "tests.helpers.guarded_runs", native.__file__, instruction_set, edge]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("edge", EDGES)
def test_nothing_beside_the_arrays_is_touched(instruction_set: str, edge: Edge) -> None:
    done = run(instruction_set, edge)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("edge", EDGES)
def test_a_byte_further_is_a_crash(edge: Edge) -> None:
    """AddressSanitizer, under which these tests run, too, reports the signal and ends with an error of its own."""
    done = run("beyond", edge)
    assert done.returncode == -signal.SIGSEGV or "AddressSanitizer: SEGV" in done.stderr
