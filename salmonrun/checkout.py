"""The four folders of a checkout under their own names: `from runtime import Engine` is `from salmonrun import Engine`.

What is installed has one name, `salmonrun`, and never comes here. In a checkout the folders can be imported by their
own names, too; each then hands its name over to the package it is, so that no module exists twice.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def stand_in(name: str) -> None:
    """Let the top-level name, and all below it, stand for `salmonrun.<name>`."""
    sys.modules[name] = importlib.import_module(f"salmonrun.{name}")
    sys.meta_path.insert(0, _Finder(name))


class _Finder(MetaPathFinder, Loader):
    """Finds `runtime.engine` as `salmonrun.runtime.engine`, already loaded or not."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(self, fullname: str, *_where: object) -> ModuleSpec | None:
        """A spec of everything below the name but `__main__`, which is run and not shared."""
        if not fullname.startswith(f"{self._name}.") or fullname.endswith(".__main__"):
            return None
        try:
            importlib.import_module(f"salmonrun.{fullname}")
        except ModuleNotFoundError as error:
            if error.name != f"salmonrun.{fullname}":
                raise
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module that is there."""
        module = sys.modules[f"salmonrun.{spec.name}"]
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is run twice; the module keeps the spec it has had before it was found by another name."""
        assert module.__spec__
        module.__spec__ = self._specs.pop(module.__spec__.name)
