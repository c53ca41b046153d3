"""Native kernels for CPUs: a C++ extension, which an installation without a compiler does not have.

`kernels/reference.py` is the specification of what they compute, `kernels/formats.py` that of the weights they take.
"""

import importlib
from types import ModuleType


def load_native() -> ModuleType:
    """The extension.

    Raises:
        ImportError: it was not built, or not for this Python or processor; the message says what to do.
    """
    try:
        return importlib.import_module("salmonrun.kernels.cpu._native")
    except ImportError as error:
        raise ImportError(
            f"the native kernels are not there ({error}): they are built when salmonrun is installed where CMake, a "
            "C++20 compiler and Python's headers are; install those, and salmonrun again"
        ) from error
