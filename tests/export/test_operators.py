"""Every graph that is exported is one that the engine's own reader understands, of the operators that it allows."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from salmonrun.export import ExportOptions
from salmonrun.export.bundle import export_bundle
from salmonrun.runtime import Engine
from salmonrun.runtime.config import WindowConfig
from salmonrun.runtime.onnx_file import read_onnx
from salmonrun.runtime.signature import OPERATORS
from salmonrun.training.model.encoders.eat import EatConfig
from salmonrun.training.starting.init import init_checkpoint
from tests.helpers.exports import TINY
from tests.helpers.llms import BASE, random_llm, write_llm
from tests.helpers.onnx_files import read_with_onnx

FAMILIES = {
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 3, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 40},
    "qwen3": {"head_dim": 32},
}


@pytest.fixture(scope="module")
def graphs(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, streaming_engine: Engine, demo_engine: Engine
) -> list[Path]:
    """Everything that there are different nodes for."""
    folder = tmp_path_factory.mktemp("graphs")
    qformer = replace(TINY.qformer, layers=2, window=WindowConfig(20, 10, 3))
    eat = EatConfig(dim=48, layers=1, heads=3, ffn=64, max_patches=200)
    init_checkpoint(replace(TINY, qformer=qformer, audio_encoder=eat), folder / "checkpoint")
    options = ExportOptions(target="cuda", llm_precision="int4", parity_budget=1.0)
    bundles = [export_bundle(folder / "checkpoint", folder / "bundle", options), tiny_bundle]
    bundles += [engine.bundle.folder for engine in (streaming_engine, demo_engine)]
    for family, change in FAMILIES.items():
        config = BASE | {"model_type": family} | change
        (folder / family).mkdir()
        bundles.append(write_llm(random_llm(config), config, folder / family).folder)
    return [path for bundle in bundles for path in sorted(bundle.rglob("*.onnx"))]


def test_the_engine_reads_what_the_onnx_package_reads(graphs: list[Path]) -> None:
    assert len(graphs) == 4 * 4 + 3
    for path in graphs:
        content = path.read_bytes()
        assert read_onnx(content) == read_with_onnx(content), path


def test_exactly_the_operators_that_are_exported_are_allowed(graphs: list[Path]) -> None:
    assert set(operators(graphs)) == {(domain, kind) for domain, kinds in OPERATORS.items() for kind in kinds}


def operators(graphs: list[Path]) -> Iterator[tuple[str, str]]:
    for path in graphs:
        yield from read_onnx(path.read_bytes()).operators
