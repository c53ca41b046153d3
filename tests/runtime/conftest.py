"""Bundles that tests of the runtime may damage, and one for each runtime."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from salmonrun.export import ExportOptions, export_bundle


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def runtimes(
    streaming_checkpoint: Path, streaming_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """For each runtime that is there, a bundle that it runs all of, but for the Q-Former."""
    if importlib.util.find_spec("salmonrun.kernels.cpu._native") is None:
        return {"onnx": streaming_bundle}
    options = ExportOptions(llm_precision="int8", encoder_precision="int8")
    folder = tmp_path_factory.mktemp("native") / "bundle"
    return {"onnx": streaming_bundle, "native": export_bundle(streaming_checkpoint, folder, options)}
