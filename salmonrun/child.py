"""A module of the package in a process of its own, which can import what this one can."""

import os
import sys


def command(module: str, *arguments: str) -> list[str]:
    """What starts it: nothing is imported from the folder that this happens to run in."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's, with the folders that it imports from."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path)}
