"""Export SALMONN-style audio language models to verified bundles, and run them. `from salmonrun import Engine`."""

from typing import TYPE_CHECKING, Any

from salmonrun.version import __version__ as __version__

if TYPE_CHECKING:
    from salmonrun.runtime import *  # noqa: F403
else:
    import importlib

    def __getattr__(name: str) -> Any:
        """The engine's public names, each loaded when it is asked for."""
        if name.startswith("_"):
            raise AttributeError(f"module 'salmonrun' has no attribute {name!r}")
        runtime = importlib.import_module("salmonrun.runtime")
        if name not in runtime.__all__:
            raise AttributeError(f"module 'salmonrun' has no attribute {name!r}; expected one of {runtime.__all__}")
        return getattr(runtime, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *importlib.import_module("salmonrun.runtime").__all__})
