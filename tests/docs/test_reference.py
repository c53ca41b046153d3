"""The reference has every public name, and names nothing that is not there."""

import importlib
import re
from types import ModuleType

import pytest

from tests.helpers.pages import ROOT

PACKAGES = ("runtime", "export", "training")
PAGES = (ROOT / "docs" / "reference").glob("*.md")
NAMED = [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]


def resolve(name: str) -> object:
    """A module, or what a module has."""
    home, _, last = name.rpartition(".")
    module = importlib.import_module(home)
    return getattr(module, last) if hasattr(module, last) else importlib.import_module(name)


@pytest.mark.parametrize("name", NAMED)
def test_what_is_named_is_there_and_explained(name: str) -> None:
    assert resolve(name).__doc__


@pytest.mark.parametrize("package", PACKAGES)
def test_all_public_names_are_in_it(package: str) -> None:
    named = list(map(resolve, NAMED))
    modules = {entry.__name__ for entry in named if isinstance(entry, ModuleType)}
    public = importlib.import_module(f"salmonrun.{package}")
    for name in public.__all__:
        value = getattr(public, name)
        assert value in named or value.__module__ in modules, name
