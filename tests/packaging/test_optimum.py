"""`optimum-cli export salmonrun`, from our wheel and the one that registers it. Needs minutes: make optimum-test."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.environments import Environment

pytestmark = [pytest.mark.optimum, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
REGISTERED = "optimum/commands/register/register_salmonrun.py"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its wheel."""
    out = tmp_path_factory.mktemp("plugin")
    source = ROOT / "plugins" / "optimum-salmonrun"
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out), str(source)]
    subprocess.run(command, cwd=out, check=True, capture_output=True)
    (path,) = out.glob("optimum_salmonrun-*.whl")
    return path


@pytest.fixture(scope="module")
def environment(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Our wheel, optimum and what registers us; PyTorch and transformers are lent, since they are large."""
    made = Environment.fresh(tmp_path_factory.mktemp("optimum") / "venv")
    (wheel,) = (ROOT / "build" / "dist").glob("salmonrun-*.whl")
    made.pip("install", "--no-deps", wheel, "optimum>=2.0")
    made.lend()
    made.pip("install", "--no-deps", plugin)
    return made


def test_the_wheel_registers_a_command_and_nothing_else(plugin: Path) -> None:
    """A file in optimum's namespace package: with an __init__.py beside it, optimum would not be found any more."""
    with zipfile.ZipFile(plugin) as file:
        assert [name for name in file.namelist() if ".dist-info/" not in name] == [REGISTERED]


def test_without_it_there_is_no_optimum() -> None:
    """Others ask whether `optimum` can be imported, and take that for optimum: our wheel must not bring the name."""
    (wheel,) = (ROOT / "build" / "dist").glob("salmonrun-*.whl")
    with zipfile.ZipFile(wheel) as file:
        assert not any(name.startswith("optimum/") for name in file.namelist())


def test_a_bundle_by_optimum(environment: Environment, tmp_path: Path) -> None:
    precisions = ("--encoder-precision", "int8", "--llm-precision", "int4")
    bundle, checkpoint = tmp_path / "bundle", ROOT / "demo" / "checkpoint"
    exported = environment.run("optimum-cli", "export", "salmonrun", checkpoint, bundle, *precisions, "--quiet")
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.startswith(f"{bundle}: ")
    checked = environment.run("salmonrun", "check", bundle)
    assert (checked.returncode, checked.stdout.splitlines()[-1]) == (0, "passed"), checked.stderr


def test_errors_and_exit_statuses_are_those_of_the_command(environment: Environment, tmp_path: Path) -> None:
    missing = environment.run("optimum-cli", "export", "salmonrun", tmp_path / "nowhere", tmp_path / "out")
    assert missing.returncode == 1
    assert missing.stderr.startswith(f"error: {tmp_path}/nowhere/config.json does not exist")
    wrong = environment.run("optimum-cli", "export", "salmonrun", "checkpoint", "out", "--max-length", 3)
    assert wrong.returncode == 2
    assert "--max-length is 3; it must be at least 256" in wrong.stderr
    assert not (tmp_path / "out").exists()
