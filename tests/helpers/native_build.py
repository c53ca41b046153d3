"""The extension of another build in place of the one that lies in kernels/cpu, which stays as it is.

As a plugin of pytest: `-p tests.helpers.native_build --native-build build/sanitize/thread`.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

NAME = "salmonrun.kernels.cpu._native"


def use(file: Path) -> None:
    """Whoever imports the extension from now on gets this one."""
    spec = spec_from_file_location(NAME, file)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module


def file_of(build: Path) -> Path:
    """The extension that CMake has left in a folder."""
    (file,) = build.glob("_native.*.so")
    return file


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--native-build", type=Path, required=True, help="folder of the build to test")


def pytest_configure(config: pytest.Config) -> None:
    use(file_of(config.getoption("--native-build")))
