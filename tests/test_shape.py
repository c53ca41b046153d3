"""A sitting per file, a screen per function."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime", "kernels", "training", "export")
FILE_LINES = 450
FUNCTION_LINES = 70
FILES = [
    path.relative_to(ROOT / "salmonrun")
    for package in PACKAGES
    for path in sorted((ROOT / "salmonrun" / package).rglob("*.py"))
]


def test_all_packages_are_seen() -> None:
    assert {file.parts[0] for file in FILES} == set(PACKAGES)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_sizes(file: Path) -> None:
    source = (ROOT / "salmonrun" / file).read_text()
    assert len(source.splitlines()) <= FILE_LINES
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}
