"""Tables in a page that programs write: the text between `<!-- bench: NAME -->` and `<!-- /bench -->`."""

import re
from functools import partial


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


def _filled(text: str, place: re.Match[str]) -> str:
    return f"{place[1]}{text}\n{place[2]}"
