"""What the site needs beside mkdocs: pages from outside of docs/, and the comments that explain fields."""

import ast
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Pages at other places of the checkout -> what they are called on the site.
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "demo/README.md": "demo.md",
}
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere."""
    for source, name in ELSEWHERE.items():
        content = relinked((ROOT / source).read_text(), ROOT / source)
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Links of a page of docs/ that lead out of it."""
    path = ROOT / "docs" / page.file.src_uri
    return relinked(markdown, path) if path.is_file() else markdown


def relinked(markdown: str, source: Path) -> str:
    """A page with its links as they are on the site; what is not on it is named without a link."""

    def place(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        name = target.relative_to(ROOT).as_posix()
        if name in ELSEWHERE:
            return f"]({up}{ELSEWHERE[name]}{match[2] or ''})"
        if target.is_relative_to(ROOT / "docs"):
            return f"]({up}{target.relative_to(ROOT / 'docs').as_posix()}{match[2] or ''})"
        raise ValueError(f"{source}: {match[1]} is not on the site")

    inside = source.is_relative_to(ROOT / "docs")
    up = "../" * (len(source.relative_to(ROOT / "docs").parts) - 1) if inside else ""
    return LINK.sub(place, markdown)


class FieldComments(griffe.Extension):
    """The comment of a field is its docstring: behind it and on the lines below, or above it."""

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        """Called for every assignment that griffe finds."""
        if attr.docstring or not isinstance(node, ast.AnnAssign) or not isinstance(attr.filepath, Path):
            return
        lines = attr.filepath.read_text().splitlines()
        text = comment_of(lines, node.lineno - 1, (node.end_lineno or node.lineno) - 1)
        if text:
            attr.docstring = griffe.Docstring(text, parent=attr)


def comment_of(lines: list[str], first: int, last: int) -> str:
    """The comment of the statement on these lines, counted from 0; empty if it has none.

    A comment on lines of its own continues the one behind the line above it, if there is one; else it is about what
    follows.
    """
    behind = trailing(lines[last])
    if behind:
        found = [behind]
        for line in lines[last + 1 :]:
            if not line.strip().startswith("#"):
                break
            found.append(line.strip().lstrip("# "))
        return " ".join(found)
    found = []
    for line in reversed(lines[:first]):
        if not line.strip().startswith("#"):
            return "" if trailing(line) else " ".join(reversed(found))
        found.append(line.strip().lstrip("# "))
    return ""


def trailing(line: str) -> str:
    """What stands behind code on its line."""
    match = re.search(r"\S.*?  # (.*)$", line)
    return match[1] if match else ""
