"""Results that are kept as JSON lines as they come, so that a run that was cut goes on where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar

from salmonrun.runtime.errors import CheckpointError
from salmonrun.runtime.schema import from_dict

T = TypeVar("T")
Settings = dict[str, Any]  # what decides the results: a file of other ones is refused


def resume(path: Path, settings: Settings, make: Callable[..., T], what: str) -> list[T]:
    """The results in a file of a run with the same settings; the file is made if there is none.

    A last line that a crash cut is removed from the file.

    Args:
        path: of the file.
        settings: of this run.
        make: of the values in a line a result.
        what: the file should hold, for errors.

    Raises:
        CheckpointError: the file was made with other settings, or is something else.
    """
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    if not path.is_file() or not path.stat().st_size:
        path.write_text(json.dumps({"settings": settings}, ensure_ascii=False) + "\n", encoding="utf-8")
    made_with, rows = read(path, make, what)
    for name in sorted({*settings, *made_with}):
        if settings.get(name) != made_with.get(name):
            raise CheckpointError(
                f"{path} was made with {name} {made_with.get(name)!r}, this run has {settings.get(name)!r}; "
                "choose another file or remove it"
            )
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(content.rfind(b"\n") + 1)
    return rows


def append(file: TextIO, row: dict[str, Any]) -> None:
    """Write a result behind the others, at once."""
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()


def read(path: Path, make: Callable[..., T], what: str) -> tuple[Settings, list[T]]:
    """The settings and the results in a file; arguments and errors as of `resume`."""
    # Not splitlines, which also splits at characters that JSON leaves as they are. A whole line ends with a newline.
    first, *others = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] or [""]
    try:
        settings: Settings = json.loads(first)["settings"]
        if not isinstance(settings, dict):
            raise ValueError("settings are no object")
        return settings, [_row(make, json.loads(line), number) for number, line in enumerate(others, 2)]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} does not hold {what} ({error}); choose another file or remove it") from error


def _row(make: Callable[..., T], values: Any, number: int) -> T:
    """A result of a line; that of a dataclass has values of its types, or was edited."""
    if isinstance(make, type):
        return from_dict(make, values, f"line {number}")
    return make(**values)
