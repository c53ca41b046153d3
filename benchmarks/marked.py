"""Tables in a page that programs write: the text between `<!-- bench: NAME -->` and `<!-- /bench -->`."""

import re


def replace_marked(page: str, made: dict[str, str]) -> str:
    """The page with a text in every place that is marked for it.

    Raises:
        ValueError: the page has no such place, or several.
    """
    for name, text in made.items():
        pattern = re.compile(rf"(<!-- bench: {re.escape(name)} -->\n).*?(<!-- /bench -->)", re.DOTALL)
        page, count = pattern.subn(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page)
        if count != 1:
            raise ValueError(f"{count} places for {name!r}; expected one <!-- bench: {name} --> ... <!-- /bench -->")
    return page
