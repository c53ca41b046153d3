"""The documentation's pages as a test reads them: their code blocks, and the markers above these.

A marker is a comment on a line of its own right above a block. CONTRIBUTING.md explains them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "demo/README.md",
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))),
)
LANGUAGES = ("sh", "python")

_MARKER = re.compile(r"<!-- (needs|takes|in): (.+) -->")
_CODE = re.compile(r"^```(\w*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block in shell or Python."""

    page: str
    line: int  # of its first line of code, from 1
    language: str
    code: str
    needs: str = ""  # what a test does not have: the block is looked at, but not run
    takes: str = ""  # how long, where it is more than a moment: `make docs-test` alone runs it
    place: str = ""  # "a checkout"; without it, a folder that has nothing to do with one
    output: str | None = None  # what the page says it prints

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str | Path) -> list[Block]:
    """The blocks of a page that can be run; a block of text right below one is what it prints."""
    text, page, end = (ROOT / page).read_text(), str(page), 0
    found: list[Block] = []
    for match in _CODE.finditer(text):
        between, end = text[end : match.start()], match.end()
        if match[1] in LANGUAGES:
            markers = dict(_markers(between))
            place = markers.get("in", "")
            line = text.count("\n", 0, match.start(2)) + 1
            needs, takes = markers.get("needs", ""), markers.get("takes", "")
            found.append(Block(page, line, match[1], match[2], needs, takes, place))
        elif match[1] == "text" and not between.strip() and found:
            found[-1] = replace(found[-1], output=match[2])
    return found


def _markers(text: str) -> Iterator[tuple[str, str]]:
    """Those on the last lines."""
    for line in reversed(text.splitlines()):
        marker = _MARKER.fullmatch(line)
        if not marker:
            return
        yield marker[1], marker[2]
