"""A sitting per file, a screen per function."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime", "kernels", "training", "export")
FOLDERS = (*(f"salmonrun/{package}" for package in PACKAGES), "tests", "benchmarks", "demo", "plugins")
FILE_LINES = 450
FUNCTION_LINES = 70
FILES = [path.relative_to(ROOT) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_all_folders_are_seen() -> None:
    assert all(any(file.is_relative_to(folder) for file in FILES) for folder in FOLDERS)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_sizes(file: Path) -> None:
    source = (ROOT / file).read_text()
    assert len(source.splitlines()) <= FILE_LINES
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}
