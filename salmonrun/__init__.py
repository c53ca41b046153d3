"""Export SALMONN-style audio language models to verified bundles, and run them. `from salmonrun import Engine`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from salmonrun.runtime import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The engine's public names, loaded with the first of them: `salmonrun.kernels` needs no ONNX Runtime."""
    if name.startswith("_"):
        raise AttributeError(f"module 'salmonrun' has no attribute {name!r}")
    runtime = importlib.import_module("salmonrun.runtime")
    if name not in runtime.__all__:
        raise AttributeError(f"module 'salmonrun' has no attribute {name!r}; expected one of {runtime.__all__}")
    return getattr(runtime, name)
