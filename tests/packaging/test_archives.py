"""What is shipped: a wheel with one name at the top, and an sdist that the wheel and the tests come out of."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import BytesParser
from pathlib import Path

import pytest

from salmonrun.version import __version__

pytest.importorskip("build")
ROOT = Path(__file__).parents[2]
BESIDE = ("benchmarks", "demo", "docker", "docs", "plugins", "recipes", "tests")  # in the sdist, not in the wheel
LEFT_OUT = {".pyc", ".pyo", ".so"}
SOURCES = (".cpp", ".h", "CMakeLists.txt")  # in the sdist alone


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel built out of it and not out of the checkout."""
    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "archives"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    with out.with_suffix(".lock").open("w") as one_at_a_time:  # an sdist is put together in the checkout
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if not out.exists():  # else another worker has built them
            kept = {"SALMONRUN_KERNEL_CACHE": str(ROOT / "build" / "kernels")}
            done = subprocess.run(
                command, cwd=base, env={**os.environ, **kept}, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(archives: Path) -> dict[str, bytes]:
    """Name -> content."""
    (path,) = archives.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def sdist(archives: Path) -> dict[str, bytes]:
    """Name, without the folder that holds all, -> content."""
    (path,) = archives.glob("*.tar.gz")
    files = {}
    with tarfile.open(path) as file:
        for member in file:
            assert member.isfile() or member.isdir(), f"{member.name} is a link"
            if member.isfile():
                content = file.extractfile(member)
                assert content
                files[member.name.partition("/")[2]] = content.read()
    return files


def built(name: str) -> bool:
    return name.startswith("salmonrun/kernels/cpu/_native.") and name.endswith(".so")


def tree(*folders: str) -> dict[str, bytes]:
    """The files of folders of the checkout, through links."""

    def paths() -> Iterator[Path]:
        for folder in folders:
            for where, _, names in os.walk(ROOT / folder, followlinks=True):
                yield from (Path(where) / name for name in names)

    return {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in paths()
        if path.suffix not in LEFT_OUT and "__pycache__" not in path.parts
    }


def test_the_wheel_is_the_package_and_nothing_else(wheel: dict[str, bytes]) -> None:
    """The kernels are built, and their sources stay behind."""
    shipped = {name: content for name, content in wheel.items() if ".dist-info/" not in name and not built(name)}
    expected = {name: content for name, content in tree("salmonrun").items() if not name.endswith(SOURCES)}
    assert shipped == expected
    recordings = "salmonrun/export/parity/recordings/annotation.json"
    assert {"salmonrun/py.typed", "salmonrun/runtime/latency/speech.ogg", recordings} <= set(shipped)
    page = re.compile(r"salmonrun/runtime/server/page/\w+\.(css|html|js)")
    code = (".py", ".pyi", ".ogg", "py.typed")
    assert all(name == recordings or page.fullmatch(name) or name.endswith(code) for name in shipped)
    compiler = os.environ.get("CXX", "c++")
    assert sum(map(built, wheel)) == (1 if shutil.which(compiler) else 0)


def test_the_wheel_brings_the_command(wheel: dict[str, bytes]) -> None:
    (points,) = (content for name, content in wheel.items() if name.endswith("/entry_points.txt"))
    assert points.decode().split("\n")[:2] == ["[console_scripts]", "salmonrun = salmonrun.__main__:main"]


def test_the_wheel_says_what_it_is(wheel: dict[str, bytes]) -> None:
    (stored,) = (content for name, content in wheel.items() if name.endswith(".dist-info/METADATA"))
    metadata = BytesParser().parsebytes(stored)
    assert metadata["Version"] == __version__
    assert (metadata["Author"], metadata["License-Expression"]) == ("salmonrun contributors", "Apache-2.0")
    assert "Operating System :: POSIX :: Linux" in metadata.get_all("Classifier", [])
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_no_link_of_its_description_leads_into_a_checkout(wheel: dict[str, bytes]) -> None:
    """PyPI has nothing but the README."""
    (stored,) = (content for name, content in wheel.items() if name.endswith(".dist-info/METADATA"))
    description = str(BytesParser().parsebytes(stored).get_payload())
    assert "# salmonrun" in description
    assert "docs/streaming.md" in description
    assert re.findall(r"\]\((?!https://)[^)]*\)", description) == []


def test_the_sdist_holds_what_its_tests_need(sdist: dict[str, bytes]) -> None:
    expected = tree("salmonrun", *BESIDE)
    assert {name: sdist.get(name) for name in expected} == expected
    assert {
        "Makefile",
        "constraints.txt",
        "mkdocs.yml",
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
    } <= set(sdist)


def test_the_sdist_holds_the_code_once(sdist: dict[str, bytes]) -> None:
    tops = {name.partition("/")[0] for name in sdist if "/" in name}
    assert tops == {"salmonrun", "salmonrun.egg-info", *BESIDE}
    code = [name for name, content in sdist.items() if name.endswith(".py") and content]
    assert len({hashlib.sha256(sdist[name]).digest() for name in code}) == len(code)
