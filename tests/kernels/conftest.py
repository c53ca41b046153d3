"""Tests of the extension run where it was built, on every instruction set of this processor."""

import pytest

from salmonrun.kernels.cpu import load_native


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "instruction_set" in metafunc.fixturenames:
        try:
            names = load_native().instruction_sets()
        except ImportError as error:
            names = [pytest.param("none", marks=pytest.mark.skip(reason=str(error)))]
        metafunc.parametrize("instruction_set", names)
