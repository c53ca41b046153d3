"""Whether our own kernels were built: where CMake finds no C++ compiler, its tests run without."""

from importlib.util import find_spec

import pytest

BUILT = find_spec("salmonrun.kernels.cpu._native") is not None
needs_kernels = pytest.mark.skipif(not BUILT, reason="the native kernels were not built")
