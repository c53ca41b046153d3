"""Markdown tables, and their places in a page: the text between `<!-- bench: NAME -->` and `<!-- /bench -->`."""

import re
from collections.abc import Iterable, Sequence
from functools import partial


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown. A row that is shorter than its header ends in empty cells."""
    lines = [header, ["---"] * len(header), *([*row, *[""] * (len(header) - len(row))] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def seconds(value: float) -> str:
    """In seconds or milliseconds, three digits."""
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def replace_marked(page: str, made: dict[str, str]) -> str:
    """The page with a text in every place that is marked for it.

    Raises:
        ValueError: the page has no such place, or several.
    """
    for name, text in made.items():
        pattern = re.compile(rf"(<!-- bench: {re.escape(name)} -->\n).*?(<!-- /bench -->)", re.DOTALL)
        page, count = pattern.subn(partial(_filled, text), page)
        if count != 1:
            raise ValueError(f"{count} places for {name!r}; expected one <!-- bench: {name} --> ... <!-- /bench -->")
    return page


def place_marked(page: str, made: dict[str, str]) -> str:
    """As replace_marked, of places "TABLE, CASE"; a case without a place gets one behind its table's last.

    Raises:
        ValueError: the page has no place for any case of the table, or several for this one.
    """
    for name in made:
        if f"<!-- bench: {name} -->" in page:
            continue
        kind = re.escape(name.split(",")[0])
        places = list(re.finditer(rf"<!-- bench: {kind}(, [^\n]*)? -->\n.*?<!-- /bench -->\n", page, re.DOTALL))
        if not places:
            raise ValueError(f"no place for {name!r}; expected at least one <!-- bench: {name.split(',')[0]}, ... -->")
        end = places[-1].end()
        page = f"{page[:end]}\n<!-- bench: {name} -->\n<!-- /bench -->\n{page[end:]}"
    return replace_marked(page, made)


def _filled(text: str, place: re.Match[str]) -> str:
    return f"{place[1]}{text}\n{place[2]}"
