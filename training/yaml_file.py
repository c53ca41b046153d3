"""YAML that people write by hand, read so that a hostile file costs no more than its size."""

from pathlib import Path
from typing import Any

import yaml

from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.file_kind import explained

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_ALIASES = 100


def read_yaml(path: Path) -> Any:
    """The content of a file.

    Raises:
        ConfigError: there is none, or it is not YAML as `parse_yaml` takes it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; expected a YAML recipe") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file system takes
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES} bytes; expected a YAML recipe")
    try:
        return parse_yaml(content.decode(), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: {explained(path, error)}") from error


def parse_yaml(text: str, where: str) -> Any:
    """Plain values of a YAML text.

    Raises:
        ConfigError: it is not YAML, is nested too deep, or its aliases stand for more than what is written.
    """
    try:
        _check_events(text, where)
        return yaml.safe_load(text)
    # ValueError: numbers with thousands of digits, dates that are none; TypeError: keys that cannot be keys.
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where} is not YAML: {error}") from error


def _check_events(text: str, where: str) -> None:
    """Before anything is built: depth, and aliases of what has aliases itself, which grow exponentially."""
    anchors: list[str | None] = []  # of the collections that are open
    holders: set[str] = set()  # anchors of collections with aliases in them
    aliases = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            anchors.append(event.anchor)
            if len(anchors) > MAX_DEPTH:
                raise ConfigError(f"{where} is nested more than {MAX_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchors.pop()
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            holders |= {anchor for anchor in anchors if anchor}
            if event.anchor in holders or aliases > MAX_ALIASES:
                raise ConfigError(
                    f"{where}: alias *{event.anchor} stands for what has aliases itself, or is one of more than "
                    f"{MAX_ALIASES}; write it out"
                )
