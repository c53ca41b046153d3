"""What a benchmark is given and cannot use is told in a line, as by the product's own commands."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("decoders.identity nowhere", "error: bundle nowhere does not exist"),
        ("loading nowhere", "error: the process that loads the bundle ended; it says why above"),
        ("pruning nowhere nowhere.json --train nowhere.json --out curve", "error: nowhere.json does not exist"),
    ],
)
def test_what_is_not_there_is_a_line_and_a_status(line: str, message: str, tmp_path: Path) -> None:
    module, *arguments = line.split()
    command = (sys.executable, "-m", f"benchmarks.{module}", *arguments)
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(message)
    if module != "loading":  # whose child says it by a traceback
        assert "Traceback" not in done.stderr
