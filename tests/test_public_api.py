"""What a package promises is there, by one name only; in a checkout, by the names of its folders, too."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime", "export", "training")


@pytest.mark.parametrize("name", PACKAGES)
def test_all_names_resolve_and_are_sorted(name: str) -> None:
    package = importlib.import_module(f"salmonrun.{name}")
    assert package.__all__ == sorted(package.__all__)
    assert len(set(package.__all__)) == len(package.__all__)
    for public in package.__all__:
        assert getattr(package, public).__doc__, public


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_see_the_names_that_are_there(name: str) -> None:
    package = importlib.import_module(f"salmonrun.{name}")
    assert package.__file__
    branches = [node for node in ast.parse(Path(package.__file__).read_text()).body if isinstance(node, ast.If)]
    (checked,) = (branch for branch in branches if ast.unparse(branch.test) == "TYPE_CHECKING")
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    seen = {str(alias.asname): f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    assert sorted(seen) == package.__all__
    for public, home in seen.items():
        module, _, original = home.rpartition(".")
        assert getattr(package, public) is getattr(importlib.import_module(module), original)
        assert public == original


@pytest.mark.parametrize("name", ["salmonrun", *(f"salmonrun.{package}" for package in PACKAGES)])
def test_importing_a_package_loads_no_name_of_it(name: str) -> None:
    """What its names need is imported with the first of them; what is no name of it does not load them either."""
    code = f"import sys, {name} as package; print(*dir(package)); from salmonrun import kernels; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed, imported = (set(line.split()) for line in done.stdout.splitlines())
    assert imported.isdisjoint({"numpy", "onnxruntime", "torch"})
    assert listed >= {*importlib.import_module("salmonrun.runtime" if name == "salmonrun" else name).__all__}


def test_the_engine_is_offered_at_the_front_door() -> None:
    door, runtime = map(importlib.import_module, ("salmonrun", "salmonrun.runtime"))
    assert all(getattr(door, name) is getattr(runtime, name) for name in runtime.__all__)
    with pytest.raises(AttributeError, match="'Motor'"):
        door.Motor  # noqa: B018


CHECKOUT = """
import importlib, sys
before = [module for module in sys.modules if module.startswith("salmonrun")]
assert not before, before
from runtime import Engine
import runtime.streaming.stream, training.model.config, export.bundle, kernels
import salmonrun.runtime.streaming.stream as stream
from salmonrun import Engine as same
assert Engine is same and runtime.streaming.stream is stream and stream.__spec__.name == stream.__name__
folders = [name for name in sys.modules if name.split(".")[0] in ("runtime", "training", "export", "kernels")]
assert len(folders) == 9, folders
assert all(sys.modules[name] is sys.modules[f"salmonrun.{name}"] for name in folders)
try:
    import runtime.no_such_module
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.skipif(not (ROOT / "runtime").is_dir(), reason="no checkout: the packages are in salmonrun alone")
def test_the_folders_of_a_checkout_are_the_same_objects() -> None:
    done = subprocess.run([sys.executable, "-c", CHECKOUT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "No module named 'runtime.no_such_module'", done.stderr


def test_a_folder_of_the_same_name_elsewhere_is_let_alone(tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("mine = True\n")
    code = "import runtime, salmonrun.runtime; assert runtime.mine and runtime is not salmonrun.runtime"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
