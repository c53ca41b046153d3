"""What a package promises is there."""

import importlib

import pytest

PACKAGES = ("runtime", "export", "training")


@pytest.mark.parametrize("name", PACKAGES)
def test_all_names_resolve_and_are_sorted(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__all__ == sorted(package.__all__)
    assert len(set(package.__all__)) == len(package.__all__)
    for public in package.__all__:
        assert getattr(package, public).__doc__, public
