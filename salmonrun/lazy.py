"""Packages whose public names are loaded one by one, when they are asked for (PEP 562).

What stands below such a package can be imported without what its public names need: `salmonrun finetune --help` without
PyTorch, `salmonrun.kernels` without ONNX Runtime. Type checkers see plain imports beside it.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def attach(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What to define as `__getattr__`, `__dir__` and `__all__` in a package.

    Args:
        package: its name.
        modules: its modules, and the public names that each defines.
    """
    homes = {name: f"{package}.{module}" for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)  # found without us from now on
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, listed, sorted(homes)
