"""docs/first-steps.ipynb: every cell runs, in order, and prints what stands below it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.pages import ROOT

NOTEBOOK = ROOT / "docs" / "first-steps.ipynb"
# The cells' output, one JSON string a line, so that a cell that prints nothing is seen, too.
RUN = """
import contextlib, io, json, sys
names = {}
for number, source in enumerate(json.load(open(sys.argv[1]))):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, f"cell {number}", "exec"), names)
    print(json.dumps(printed.getvalue()))
"""


def test_it_runs_and_prints_what_it_says(demo_bundle: Path, tmp_path: Path) -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    shutil.copytree(ROOT / "demo" / "recordings", tmp_path / "demo" / "recordings")
    shutil.copytree(demo_bundle, tmp_path / "build" / "demo" / "bundle")
    (tmp_path / "docs").mkdir()
    sources = tmp_path / "sources.json"
    sources.write_text(json.dumps(["".join(cell["source"]) for cell in cells]))
    environment = os.environ | {"MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(sources)],
        cwd=tmp_path / "docs",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    for cell, text in zip(cells, printed, strict=True):
        stored = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        assert text == stored, "".join(cell["source"])
