"""`python -m tests.fuzz.guided`: the first inputs of each reader by a fixed seed; a defect that is there is found."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INPUTS = 2000

pytestmark = [
    pytest.mark.tools,
    pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no build for this Python"),
]


@pytest.mark.timeout(1800)  # ten readers
def test_no_reader_ends_in_a_foreign_error(tmp_path: Path) -> None:
    """From right files, and no corpus of earlier runs."""
    command = [sys.executable, "-m", "tests.fuzz.guided", "--inputs", str(INPUTS), "--seed", "1"]
    done = subprocess.run([*command, "--kept", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(list((tmp_path / "corpus").iterdir())) == 10
    for line in lines:
        inputs, branches = (int(part.split()[0]) for part in line.partition(": ")[2].split(", ")[:2])
        assert inputs >= INPUTS, line
        assert branches > 5, line


CARELESS = """
import json
from tests.fuzz.guided import readers

read = readers.file_reader(lambda path: json.loads(path.read_text()), "careless.json")
readers.READERS["careless"] = readers.Reader("*.json", read)
from tests.fuzz.guided.worker import main

main()
"""


def test_a_foreign_error_is_found(tmp_path: Path) -> None:
    """Of a reader that lets the errors of json through: the input is kept, and read again by itself."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "seed").write_text('{"right": 1}')
    command = [sys.executable, "-c", CARELESS, "careless", str(tmp_path), f"-artifact_prefix={tmp_path}/", "-seed=1"]
    for inputs in ([str(tmp_path / "corpus")], tmp_path.glob("crash-*")):
        done = subprocess.run([*command, *map(str, inputs)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "JSONDecodeError" in done.stdout + done.stderr
