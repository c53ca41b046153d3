"""The wheel in fresh environments, as users have them. Needs the network and minutes: make install-test."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

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


@dataclass(frozen=True)
class Environment:
    """A virtual environment, used from a folder that has nothing to do with the checkout."""

    folder: Path

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """One of its programs; nothing of the environment of the tests is handed on that could lend it packages."""
        command = [str(self.folder / "bin" / program), *map(str, arguments)]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            command, cwd=self.folder, env=variables, capture_output=True, text=True, errors="replace", check=False
        )

    def pip(self, *arguments: object) -> str:
        done = self.run("python", "-m", "pip", "--disable-pip-version-check", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def files(self, distribution: str) -> set[Path]:
        """Of the distribution, as its RECORD lists them, that are there."""
        code = "import importlib.metadata as m, sys; print(*[f.locate() for f in m.files(sys.argv[1])], sep='\\n')"
        done = self.run("python", "-c", code, distribution)
        assert done.returncode == 0, done.stderr
        return {path for line in done.stdout.splitlines() if (path := Path(line).resolve()).suffix != ".pyc"}


@pytest.fixture
def environment(tmp_path: Path) -> Callable[[str], Environment]:
    """Makes a fresh one."""

    def make(python: str) -> Environment:
        subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
        return Environment(tmp_path / "venv")

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
    installed = {package["name"] for package in json.loads(fresh.pip("list", "--format", "json"))}
    assert installed.isdisjoint({"torch", "transformers", "onnx", "safetensors"})
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
