"""Published files that tests of conversion may edit."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.published import Published


@pytest.fixture
def published(golden: Path, tmp_path: Path) -> Published:
    folder = tmp_path / "salmonn"
    shutil.copytree(golden / "salmonn", folder, copy_function=shutil.copyfile)
    return Published(folder, golden / "beats" / "beats.pt")
