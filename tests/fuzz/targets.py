"""What can be fuzzed: each target is a module that makes its material once, and runs a case by its number."""

import importlib
from pathlib import Path
from typing import Protocol, cast


class Target(Protocol):
    """A module of `TARGETS`."""

    def prepare(self, folder: Path) -> None:
        """Make what cases are changes of."""
        ...

    def run(self, seed: int, index: int, folder: Path, material: Path) -> str:
        """The case of this number: "refused", "late" (refused when it was used, not before) or "ran".

        Args:
            seed: of all cases.
            index: the case's number.
            folder: where it may write.
            material: what `prepare` has filled.

        Raises:
            Exception: any other error than ours, which is a finding; so is a crash, or what takes too long.
        """
        ...


TARGETS = {
    "native": "tests.fuzz.cases",
    "manifests": "tests.fuzz.manifests",
    "bundles": "tests.fuzz.bundles",
    "audio": "tests.fuzz.audio",
    "recipes": "tests.fuzz.recipes",
    "pickles": "tests.fuzz.pickles",
}


def target(name: str) -> Target:
    """The module of this name."""
    return cast(Target, importlib.import_module(TARGETS[name]))
