"""Kernels that were built before are taken from a folder, and only where nothing of theirs has changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CMAKE = """
cmake_minimum_required(VERSION 3.18)
project(kernels LANGUAGES CXX)
add_library(_native MODULE binding.cpp)
set_target_properties(_native PROPERTIES PREFIX "" SUFFIX "{suffix}")
install(TARGETS _native LIBRARY DESTINATION .)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """With a kernel that is compiled in a moment."""
    if not shutil.which(os.environ.get("CXX", "c++")):
        pytest.skip("there is no compiler")
    folder = tmp_path / "checkout"
    sources = folder / "salmonrun" / "kernels" / "cpu"
    sources.mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "salmonrun/version.py"):
        shutil.copyfile(ROOT / name, folder / name)
    suffix = subprocess.check_output(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"], text=True
    )
    (sources / "CMakeLists.txt").write_text(CMAKE.format(suffix=suffix.strip()))
    (sources / "binding.cpp").write_text('#include "answer.h"\nint answer() { return ANSWER; }\n')
    (sources / "answer.h").write_text("#define ANSWER 1\n")
    return folder


def build(checkout: Path, out: str, **environment: str) -> tuple[bytes, bool]:
    """The extension, and whether it was compiled."""
    folder = checkout.parent / out
    command = [
        sys.executable,
        "setup.py",
        "--quiet",
        "build_ext",
        f"--build-lib={folder}",
        f"--build-temp={folder}/made",
    ]
    cache = {"SALMONRUN_KERNEL_CACHE": str(checkout.parent / "cache"), **environment}
    done = subprocess.run(
        command, cwd=checkout, env={**os.environ, **cache}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (extension,) = folder.glob("salmonrun/kernels/cpu/_native*.so")
    return extension.read_bytes(), (folder / "made").exists()


def test_what_was_built_is_taken_where_nothing_has_changed(checkout: Path) -> None:
    first, compiled = build(checkout, "first")
    assert compiled
    assert build(checkout, "second") == (first, False)
    assert not build(checkout, "third", CXXFLAGS="")[1]
    assert build(checkout, "other-flags", CXXFLAGS="-DOTHER=1")[1]
    (checkout / "salmonrun/kernels/cpu/answer.h").write_text("#define ANSWER 2\n")
    changed, compiled = build(checkout, "changed")
    assert compiled
    assert changed != first
    assert build(checkout, "again") == (changed, False)
    assert len(list((checkout.parent / "cache").glob("*/*"))) == 3
