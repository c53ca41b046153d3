"""What images and manifests of docker/ name is there, by the same names and versions."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
MANIFEST: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "rayservice.yaml").read_text())


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = manifest["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_is_made_of_what_there_is(file: Path) -> None:
    """Extras are those of pyproject.toml, the page's command builds it, and it does not run as root."""
    text = file.read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = {name for names in re.findall(r"\.whl\)\[([\w,]+)\]", text) for name in names.split(",")}
    assert asked
    assert asked <= set(extras)
    assert f"docker build -f docker/{file.name} -t salmonrun" in text
    assert re.findall(r"^USER (\d+)$", text, re.MULTILINE) == ["10001"]


def test_the_manifest_runs_the_image_that_is_built_for_it() -> None:
    text = (ROOT / "docker" / "ray.Dockerfile").read_text()
    (tag,) = re.findall(r"docker build -f docker/ray.Dockerfile -t (\S+) ", text)
    assert {pod["image"] for pod in pods(MANIFEST)} == {tag}
    assert MANIFEST["spec"]["rayClusterConfig"]["rayVersion"] in re.findall(r"^ARG RAY=(\S+)$", text, re.MULTILINE)
    assert 'CMD ["ray"' in text
    (volume,) = re.findall(r"^VOLUME (\S+)$", text, re.MULTILINE)
    assert {mount["mountPath"] for pod in pods(MANIFEST) for mount in pod["volumeMounts"]} == {volume}


def test_the_manifest_asks_for_the_application_with_arguments_that_it_has() -> None:
    """Ray is no package of the tests' environment: so its module is read, and not imported."""
    (application,) = yaml.safe_load(MANIFEST["spec"]["serveConfigV2"])["applications"]
    places = [application["import_path"]]
    places += [
        one["value"] for pod in pods(MANIFEST) for one in pod["env"] if one["name"].endswith("CALLBACK_IMPORT_PATH")
    ]
    assert len(places) == 3
    for place in places:
        module, name = place.split(":")
        parsed = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        assert name in {node.name for node in parsed.body if isinstance(node, ast.FunctionDef)}
    parsed = ast.parse((ROOT / "runtime" / "server" / "ray" / "app.py").read_text())
    (arguments,) = (node for node in parsed.body if isinstance(node, ast.ClassDef) and node.name == "Arguments")
    fields = {
        node.target.id
        for node in arguments.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert set(application["args"]) <= fields
    assert application["args"]["bundle"] == "/bundle"
