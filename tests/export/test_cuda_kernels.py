"""Graphs for GPUs have no node that ONNX Runtime's CUDA provider has no kernel for: it would be computed on the CPU."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from salmonrun.export import ExportOptions
from salmonrun.export.bundle import _builders
from salmonrun.export.graphs.builder import FLOAT, FLOAT16, GraphBuilder, WeightFile
from salmonrun.export.graphs.llm import build_llm_graph
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.llm import stored_llm
from salmonrun.export.progress import Progress
from salmonrun.runtime.config import WindowConfig
from salmonrun.runtime.signature import OPERATORS
from salmonrun.training.checkpoint import open_checkpoint
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.model.encoders.eat import EatConfig
from salmonrun.training.model.llm import published_parameters
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.tensors import lazy
from tests.helpers.cuda_kernels import ASSET, NoKernelError, check_kernels, read_list
from tests.helpers.exports import TINY
from tests.helpers.llms import BASE, random_llm
from tests.helpers.streams import block_causal

EAT = EatConfig(dim=48, layers=1, heads=3, ffn=64, max_patches=200)
MODELS = {
    "BEATs": TINY,
    "EAT, windows that overlap": replace(
        TINY, audio_encoder=EAT, qformer=replace(TINY.qformer, layers=2, window=WindowConfig(20, 10, 3))
    ),
    "blocks": block_causal(max_s=4.0),
    "no audio encoder": replace(TINY, audio_encoder=None),
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 32},
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 3, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 40},
}


def graphs_of(model: ModelConfig, options: ExportOptions, folder: Path) -> Iterator[onnx.ModelProto]:
    """As the export builds them."""
    init_checkpoint(model, folder / "checkpoint")
    source, progress = open_checkpoint(folder / "checkpoint"), Progress(1, False)
    llm = stored_llm(source, options, None, progress)
    for name, (_, build) in _builders(source, llm, options, (), progress).items():
        with WeightFile(folder / f"{name}.onnx.data") as weights:
            graph = build(weights)
        yield saved(graph, folder / f"{name}.onnx")


def saved(graph: GraphBuilder, path: Path) -> onnx.ModelProto:
    graph.save(path)
    return onnx.load(path, load_external_data=False)


@pytest.mark.parametrize("encoder", ["fp32", "fp16"])
@pytest.mark.parametrize("model", MODELS)
def test_encoders_and_qformer_have_kernels(model: str, encoder: Any, tmp_path: Path) -> None:
    options = ExportOptions(target="cuda", encoder_precision=encoder, llm_precision="int4")
    checked = [check_kernels(graph) for graph in graphs_of(MODELS[model], options, tmp_path)]
    assert len(checked) == (3 if model == "no audio encoder" else 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_llms_have_kernels(family: str, tmp_path: Path) -> None:
    config = BASE | {"model_type": family} | FAMILIES[family]
    tensors = lazy(published_parameters(random_llm(config)))
    with WeightFile(tmp_path / "llm.onnx.data") as weights:
        graph = build_llm_graph(LlmShape.from_config(config), tensors, weights, "int8", 128, FLOAT16)
    check_kernels(saved(graph, tmp_path / "llm.onnx"))


def test_what_has_no_kernel_is_found(tmp_path: Path) -> None:
    """Dynamic int8 has none at all, GroupQueryAttention none of float32, Pad none of integers."""
    known = {key.partition("/")[2] for key in json.loads(ASSET.read_text())["kernels"]}
    assert {kind for kinds in OPERATORS.values() for kind in kinds} - known == {"DynamicQuantizeMatMul"}
    config = BASE | {"model_type": "llama"}
    tensors = lazy(published_parameters(random_llm(config)))
    with WeightFile(tmp_path / "llm.onnx.data") as weights:
        graph = build_llm_graph(LlmShape.from_config(config), tensors, weights, "fp32", 128, FLOAT)
    with pytest.raises(NoKernelError, match=r"GroupQueryAttention of \['float'"):
        check_kernels(saved(graph, tmp_path / "llm.onnx"))
    with WeightFile(tmp_path / "pad.onnx.data") as weights:
        graph = GraphBuilder("pad", weights)
        graph.op("Pad", graph.op("Shape", graph.input("x", ["n"])), graph.ints(0, 1))
    with pytest.raises(NoKernelError, match=r"Pad of \['int64', 'int64'\]"):
        check_kernels(saved(graph, tmp_path / "pad.onnx"))


def test_the_list_is_read_as_it_is_written() -> None:
    page = (
        '<a name="cpuexecutionprovider"/>\n|**Operator Domain:** *ai.onnx*||||\n|Gelu|*in* X:**T**|20+|**T** = x|\n'
        '<a name="cudaexecutionprovider"/>\n|Op Name | Parameters | OpSet Version | Types Supported |\n'
        "|**Operator Domain:** *ai.onnx*||||\n"
        "|TopK|*in* X:**T**<br> *in* K:**tensor(int64)**<br> *out* Values:**T**<br> *out* Indices:**I**<br><br>or<br>"
        "<br>*in* X:**T**<br> *out* Values:**T**|22+|**T** = tensor(bfloat16)|\n"
        "|||[11, 21]|**I** = tensor(int64)<br/> **T** = tensor(double), seq(tensor(int8)), tensor(float16)|\n"
        "|||10|**T** = tensor(float)|\n|Foo|*in* X:**T**|1+|**T** = tensor(float)|\n"
        "|**Operator Domain:** *com.microsoft*||||\n"
        "|QuickGelu|*in* X:**T**<br> *out* Y:**T**|1+|**T** = tensor(float)|\n"
        "|Gelu|*in* X:**T**<br> *out* Y:**T**|1+|**T** = tensor(float)|\n"
    )
    whole = {"inputs": ["T", "tensor(int64)"], "outputs": ["T", "I"]}
    assert read_list(page) == {
        "/TopK": {
            "variants": [whole, {"inputs": ["T"], "outputs": ["T"]}],
            "types": {"I": ["int64"], "T": ["double", "float16"]},
        },
        "com.microsoft/QuickGelu": {
            "variants": [{"inputs": ["T"], "outputs": ["T"]}],
            "types": {"T": ["float"]},
        },
    }
