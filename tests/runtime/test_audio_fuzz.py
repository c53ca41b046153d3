"""Damaged recordings of all containers and codecs are read or refused: no other error, no crash, no hang."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MUTANTS = 500


def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    """The first ones of `make fuzz FUZZ='--target audio'`, the same every time; many of either kind."""
    command = [sys.executable, "-m", "tests.fuzz", "--target", "audio", "--folder", str(tmp_path)]
    command += ["--seed", "0", "--count", str(MUTANTS), "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, state, findings = done.stdout.splitlines()
    assert findings == "0 findings"
    refused, late, ran, foreign = (int(part.split()[0]) for part in state.partition(": ")[2].split(", "))
    assert (refused + late + ran, foreign) == (MUTANTS, 0)
    assert min(refused, ran) > MUTANTS / 4
    assert late > 0
