"""Tables in a page that programs write: the text between `<!-- bench: NAME -->` and `<!-- /bench -->`."""

import re
from pathlib import Path


def replace_marked(page: Path, name: str, text: str) -> None:
    """Put `text` where the page is marked for it.

    Raises:
        ValueError: the page has no such place, or several.
    """
    found = page.read_text()
    pattern = re.compile(rf"(<!-- bench: {re.escape(name)} -->\n).*?(<!-- /bench -->)", re.DOTALL)
    if len(pattern.findall(found)) != 1:
        raise ValueError(f"{page} must have exactly one place <!-- bench: {name} --> ... <!-- /bench -->")
    page.write_text(pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", found))
