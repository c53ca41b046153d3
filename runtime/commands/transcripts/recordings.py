"""Which recordings a command line names: files, folders with all that is below them, and patterns."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NoReturn

from salmonrun.runtime.commands.source import STDIN
from salmonrun.runtime.errors import ConfigError

# What is taken of a folder or a pattern. libsndfile reads the first row; recordings of the second are told to be
# converted, each on its own, since one that is left out in silence would be missed.
SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"),
    *(".m4a", ".aac", ".wma", ".amr"),
)
_ANY = "*?["  # characters that make a pattern


@dataclass(frozen=True)
class Recording:
    """A recording, and where its transcripts stand below a folder of them."""

    file: str  # as it is opened, and called in what is written
    place: PurePath  # without a suffix: below the folder or the fixed part of the pattern that it was found by


def find_recordings(paths: Sequence[str]) -> list[Recording]:
    """What the paths name, in their order, and in that of names within folders; "-" is standard input.

    A file is taken whatever its suffix is, there or not; of folders and patterns, files with a suffix of recordings,
    hidden ones left out. Links to folders are not followed.

    Raises:
        ConfigError: a folder without recordings, or a pattern that none fits.
        OSError: a folder that cannot be read.
    """
    found: list[Recording] = []
    for path in paths:
        if os.path.isdir(path):
            found += _found(path, path, list(_files_below(path)))
        elif any(character in path for character in _ANY) and not os.path.lexists(path):
            found += _found(path, _fixed(path), sorted(filter(os.path.isfile, glob.iglob(path, recursive=True))))
        else:
            found.append(Recording(path, PurePath("stdin" if path == STDIN else Path(path).stem)))
    return found


def _found(path: str, root: str, files: Sequence[str]) -> list[Recording]:
    recordings = [
        Recording(file, PurePath(os.path.relpath(file, root or ".")).with_suffix(""))
        for file in files
        if file.lower().endswith(SUFFIXES)
    ]
    if not recordings:
        raise ConfigError(f"{path} has no recordings; expected some that end with {', '.join(SUFFIXES)}")
    return recordings


def _files_below(folder: str) -> Iterator[str]:
    for root, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(root, name) for name in sorted(files) if not name.startswith("."))


def _refuse(error: OSError) -> NoReturn:
    """A folder that cannot be read is told, and not taken for an empty one."""
    raise error


def _fixed(pattern: str) -> str:
    """The folders of a pattern before the first that is one."""
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if any(character in part for character in _ANY))
    return str(Path(*parts[:first])) if first else ""
