"""Published files that tests of conversion may edit."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.golden import Golden


@pytest.fixture
def published(golden: Path, tmp_path: Path) -> Golden:
    folder = tmp_path / "salmonn"
    shutil.copytree(golden / "salmonn", folder, copy_function=shutil.copyfile)
    return Golden(folder, golden / "beats" / "beats.pt")
