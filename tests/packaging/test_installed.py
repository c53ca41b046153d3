"""The wheel in fresh environments, as users have them. Needs the network and minutes: make install-test."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.helpers.environments import Environment, outside
from tests.helpers.pages import blocks

pytestmark = [pytest.mark.install, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo" / "recordings"
VERSIONS = ("3.11", "3.12", "3.13")


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The one that make wheel built."""
    (path,) = (ROOT / "build" / "dist").glob("salmonrun-*.whl")
    return path


def package(version: str, wheel: Path) -> Path:
    """What is installed into a Python of this version: the wheel where it was built for that, elsewhere the sdist."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return wheel
    (sdist,) = wheel.parent.glob("salmonrun-*.tar.gz")
    return sdist


@pytest.fixture
def environment(tmp_path: Path) -> Callable[[str], Environment]:
    """Makes a fresh one."""

    def make(python: str) -> Environment:
        return Environment.fresh(tmp_path / "venv", python)

    return make


def interpreter(version: str) -> str:
    """A Python of this version: on the path, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    named = shutil.which(f"python{version}")
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for python in (*([named] if named else []), *map(str, pyenv.glob(f"versions/{version}.*/bin/python"))):
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return python
    pytest.skip(f"no Python {version} on the path")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_extra_cpu_runs_a_bundle(
    version: str, environment: Callable[[str], Environment], wheel: Path, demo_bundle: Path
) -> None:
    fresh, archive = environment(interpreter(version)), package(version, wheel)
    fresh.pip("install", archive)
    bare = fresh.run("salmonrun", "check", demo_bundle)
    assert (bare.returncode, bare.stdout) == (1, "")
    assert bare.stderr.startswith("error: ONNX Runtime is not installed: pip install 'salmonrun[cpu]'")
    fresh.pip("install", f"{archive}[cpu]")
    fresh.pip("check")
    assert fresh.packages().isdisjoint({"torch", "transformers", "onnx", "safetensors"})
    native = fresh.run("python", "-c", "from salmonrun.kernels.cpu import load_native; load_native()")
    assert (native.returncode == 0) == (shutil.which("c++") is not None), native.stderr
    checked = fresh.run("salmonrun", "check", demo_bundle)
    assert (checked.returncode, checked.stdout.splitlines()[-1]) == (0, "passed"), checked.stderr
    entries = json.loads((DEMO / "annotation.json").read_text())["annotation"]
    spoken = [entry for entry in entries if entry["task"] == "asr"]
    files = [DEMO / entry["path"] for entry in spoken]
    answered = fresh.run("salmonrun", "transcribe", demo_bundle, *files)
    assert answered.returncode == 0, answered.stderr
    expected = [f"{file}: {entry['text']}" for file, entry in zip(files, spoken, strict=True)]
    assert answered.stdout.splitlines() == expected
    refused = fresh.run("salmonrun", "finetune", "--cfg-path", "recipe.yaml")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: salmonrun finetune needs ")
    assert refused.stderr.endswith("which is not installed: pip install 'salmonrun[train]'\n")


def test_the_install_lines_of_the_readme(tmp_path: Path) -> None:
    """Each by itself, in a fresh environment, at the top of the checkout."""
    (block,) = (block for block in blocks("README.md") if block.needs == "download" and "pip install" in block.code)
    lines = [line for line in block.code.splitlines() if line.startswith("pip install ")]
    assert len(lines) == 2
    for number, line in enumerate(lines):
        fresh = Environment.fresh(tmp_path / f"venv-{number}")
        path = f"{fresh.programs}:/usr/local/bin:/usr/bin:/bin"
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=outside(PATH=path), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {"salmonrun", "onnxruntime"} <= fresh.packages()


def whole(fresh: Environment, distributions: Iterable[str]) -> None:
    """All files of each distribution are there, and it can be imported."""
    for distribution in distributions:
        missing = [path for path in fresh.files(distribution) if not path.exists()]
        assert missing == [], distribution
        done = fresh.run("python", "-c", f"import {distribution}; print({distribution}.__file__)")
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).resolve() in fresh.files(distribution)


@pytest.mark.parametrize("first", ["salmonrun", "kernels"])
@pytest.mark.parametrize("removed", ["salmonrun", "kernels"])
def test_pypi_has_a_package_called_kernels(
    first: str, removed: str, environment: Callable[[str], Environment], wheel: Path
) -> None:
    """Our kernels are salmonrun.kernels: neither package takes a file from the other, whichever comes or goes first."""
    fresh, both = environment(sys.executable), {"salmonrun": wheel, "kernels": "kernels"}
    last = (both.keys() - {first}).pop()
    for name in (first, last):
        fresh.pip("install", both[name])
    whole(fresh, both)
    assert fresh.files("salmonrun").isdisjoint(fresh.files("kernels"))
    ours = fresh.run("python", "-c", "import salmonrun.kernels, kernels; print(salmonrun.kernels is kernels)")
    assert ours.stdout == "False\n", ours.stderr
    gone = fresh.files(removed)
    fresh.pip("uninstall", "--yes", removed)
    assert [path for path in gone if path.exists()] == []
    whole(fresh, both.keys() - {removed})
