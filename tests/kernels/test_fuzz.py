"""Damaged files of weights, and manifests that do not fit them, are refused or computed with: never a crash."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

native: Any = pytest.importorskip("salmonrun.kernels.cpu._native")
ROOT = Path(__file__).parents[2]
MUTANTS = 300


def test_mutants_are_refused_or_run(tmp_path: Path) -> None:
    """The first ones of `make fuzz`, the same every time; many of either kind."""
    build = str(Path(native.__file__).parent)
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--target",
        "native",
        "--native-build",
        build,
        "--folder",
        str(tmp_path),
    ]
    command += ["--seed", "0", "--count", str(MUTANTS), "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, state, findings = done.stdout.splitlines()
    assert findings == "0 findings"
    refused, late, ran, foreign = (int(part.split()[0]) for part in state.partition(": ")[2].split(", "))
    assert (refused + ran, late, foreign) == (MUTANTS, 0, 0)
    assert min(refused, ran) > MUTANTS / 4
