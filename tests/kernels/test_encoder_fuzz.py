"""Encoders of random bytes are computed with, whatever they say: never a crash, and everywhere the same."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

native: Any = pytest.importorskip("salmonrun.kernels.cpu._native")
ROOT = Path(__file__).parents[2]
CASES = 150


def test_rubbish_is_computed_with() -> None:
    """In a process of its own: a crash is that one's."""
    command = [sys.executable, "-m", "tests.helpers.rubbish_encoders", native.__file__, "0", str(CASES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
