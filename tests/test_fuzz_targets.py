"""The first mutants of the targets of `make fuzz`: none ends in an error that is not ours. Seeds are fixed."""

import shutil
from pathlib import Path

import pytest

from tests.fuzz import bundles, manifests, pickles, recipes
from tests.fuzz.bundle_runs import KINDS

SEED = 0


@pytest.fixture(scope="module")
def material(tiny_bundle: Path, streaming_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles that other tests have, too: none of weights for our own kernels, which tests/kernels damages."""
    folder = tmp_path_factory.mktemp("material")
    for kind, bundle in zip(KINDS, (tiny_bundle, tiny_bundle, streaming_bundle), strict=True):
        shutil.copytree(bundle, folder / kind)
    return folder


def outcomes(target: object, count: int, folder: Path, material: Path) -> set[str]:
    return {target.run(SEED, case, folder, material) for case in range(count)}  # type: ignore[attr-defined]


def test_manifests(material: Path, tmp_path: Path) -> None:
    assert outcomes(manifests, 200, tmp_path, material) >= {"refused", "ran"}


def test_bundles(material: Path, tmp_path: Path) -> None:
    assert outcomes(bundles, 20, tmp_path, material) >= {"refused", "ran"}


@pytest.mark.parametrize(("target", "count"), [(recipes, 150), (pickles, 30)])
def test_files_of_others(target: object, count: int, tmp_path: Path) -> None:
    """No code in a pickle is run, either."""
    (tmp_path / "material").mkdir()
    (tmp_path / "case").mkdir()
    target.prepare(tmp_path / "material")  # type: ignore[attr-defined]
    assert outcomes(target, count, tmp_path / "case", tmp_path / "material") == {"refused", "ran"}
