"""`--encoder-budget`: products of int8 encoders that stay in float32, chosen by what they cost."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.budget.encoders import QUANTIZE, QuantizedProducts
from salmonrun.export.graphs.builder import GraphBuilder, WeightFile
from salmonrun.export.graphs.linear import dynamic_int8_linear
from salmonrun.export.parity.encoders import bundled, features, modules_of
from salmonrun.export.weights.encoders import BLOCK
from salmonrun.kernels import reference
from salmonrun.kernels.formats import quantize_t16
from salmonrun.runtime import ConfigError, Engine
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import BundleError
from salmonrun.runtime.golden import check
from salmonrun.runtime.manifest import EncoderRuntime
from salmonrun.training.checkpoint import load_audio_encoder, load_whisper, open_checkpoint
from salmonrun.training.data.annotation import read_annotation
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.model.whisper import WhisperLayer
from salmonrun.training.starting.init import init_checkpoint
from tests.helpers.damage import reseal
from tests.helpers.encoders import EAT, ODD_WHISPER, RANKS, config
from tests.helpers.exports import noise, parity, write_speech

native = pytest.importorskip("salmonrun.kernels.cpu._native")

INT8 = ExportOptions(encoder_precision="int8", llm_precision="int8")
RUNTIMES: tuple[EncoderRuntime, ...] = ("native", "onnx")
PREFIXES = {"whisper": "layers.", "audio_encoder": "encoder.layers."}
LOADERS: dict[str, Callable[..., torch.nn.Module]] = {"whisper": load_whisper, "audio_encoder": load_audio_encoder}


@pytest.fixture(scope="module")
def int8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("int8") / "bundle", INT8)


@pytest.fixture(scope="module")
def speech_annotation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(tmp_path_factory.mktemp("speech"), 4)


@pytest.fixture(scope="module")
def within(tiny_checkpoint: Path, speech_annotation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A budget that int8 alone is not within."""
    options = replace(INT8, encoder_budget=0.007)
    out = tmp_path_factory.mktemp("within") / "bundle"
    return export_bundle(tiny_checkpoint, out, options, calibration_speech=speech_annotation)


def inputs_of(checkpoint: Path, part: str) -> torch.Tensor:
    source = open_checkpoint(checkpoint)
    return torch.from_numpy(features(source, source.config.audio, noise(2.0, seed=3).pcm)[part])


def relative(got: torch.Tensor, reference: torch.Tensor) -> float:
    return float((got - reference).norm() / reference.norm())


@pytest.mark.parametrize("columns", [128, 100, 300])
def test_a_simulated_product_is_the_runtimes(tmp_path: Path, columns: int) -> None:
    """But for the order of sums in float32, and what they round otherwise for it."""
    rng = np.random.default_rng(columns)
    linear, x = torch.nn.Linear(columns, 40), torch.randn(9, columns, generator=torch.Generator().manual_seed(0))
    weight, bias = (part.detach().numpy() for part in linear.parameters())
    packed, scales = quantize_t16(weight, 8, BLOCK)
    expected = reference.Linear(packed, scales, 40, columns, BLOCK, bias)(x.numpy())
    np.testing.assert_allclose(QUANTIZE["native"](x, linear).detach(), expected, atol=1e-5)
    x = x * float(rng.uniform(0.5, 2)) + 0.3  # not symmetric
    with WeightFile(tmp_path / "linear.onnx.data") as weights:
        graph = GraphBuilder("linear", weights)
        product = dynamic_int8_linear(graph, graph.input("x", [9, columns]), "linear", weight, bias)
        graph.output(product, "y", [9, 40])
        graph.save(tmp_path / "linear.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "linear.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(QUANTIZE["onnx"](x, linear).detach(), session.run(None, {"x": x.numpy()})[0], atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("part", list(LOADERS))
def test_what_is_measured_is_what_the_runtime_loses(
    int8: Path, tiny_checkpoint: Path, part: str, runtime: EncoderRuntime
) -> None:
    """Of a whole encoder; the kernels have attention in int8, too, which is not simulated."""
    module, inputs = LOADERS[part](open_checkpoint(tiny_checkpoint)), inputs_of(tiny_checkpoint, part)
    quantized = QuantizedProducts(module, PREFIXES[part], runtime)
    exact = quantized.states(inputs)
    with quantized.in_int8(quantized.by_cost([inputs])):
        simulated = quantized.states(inputs)
    assert torch.equal(quantized.states(inputs), exact)  # and nothing is left of it
    (found,) = bundled(open_bundle(int8), runtime)(part, [[inputs.numpy()]])
    assert relative(simulated, exact) > 1e-3
    assert relative(simulated, exact) == pytest.approx(relative(torch.from_numpy(found), exact), rel=0.5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_product_that_int8_cannot_hold_costs_most(tiny_checkpoint: Path, runtime: EncoderRuntime) -> None:
    """Each output of it has a weight that is never used, beside which the others are rounded away."""
    whisper, inputs = load_whisper(open_checkpoint(tiny_checkpoint)), inputs_of(tiny_checkpoint, "whisper")
    layer = cast(WhisperLayer, whisper.layers[1])
    with torch.no_grad():
        layer.fc1.weight[:, 0] = 30.0
        layer.final_layer_norm.weight[0] = layer.final_layer_norm.bias[0] = 0.0
    assert QuantizedProducts(whisper, "layers.", runtime).by_cost([inputs])[0] == "layers.1.fc1"


def test_states_are_within_the_budget(within: Path, int8: Path) -> None:
    chosen = parity(within)["encoders"]
    assert {(one["part"], one["runtime"]) for one in chosen} == {(p, r) for p in LOADERS for r in RUNTIMES}
    for one in chosen:
        assert one["error"] <= 0.007
        assert (one["error_int8"] <= 0.007) == (one["fp32"] == [])
        assert len(set(one["fp32"])) == len(one["fp32"]) <= one["products"]
    assert any(one["fp32"] for one in chosen)
    for part in ("whisper", "whisper, native"):
        assert parity(within)["stages"][part]["relative"] < parity(int8)["stages"][part]["relative"]
    assert "products of the encoders that cost most" in (within / "README.md").read_text()


def test_the_bundle_is_as_near_as_it_says(within: Path, tiny_checkpoint: Path, speech_annotation: Path) -> None:
    """Whisper of ONNX Runtime on the recordings that were measured: all that is rounded there is simulated."""
    source, entries = open_checkpoint(tiny_checkpoint), read_annotation(speech_annotation)[0]
    recordings = [load_recording(entry, source.config.audio).pcm for entry in entries]
    inputs = [[features(source, source.config.audio, pcm)["whisper"]] for pcm in recordings]
    found = np.concatenate(bundled(open_bundle(within), "onnx")("whisper", inputs))
    expected = np.concatenate(modules_of(source)("whisper", inputs))
    (said,) = (one for one in parity(within)["encoders"] if (one["part"], one["runtime"]) == ("whisper", "onnx"))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error == pytest.approx(said["error"], rel=0.2)


def test_both_runtimes_have_them_in_float32(within: Path) -> None:
    """And no others."""
    bundle = open_bundle(within)
    assert bundle.manifest.encoders
    for part, encoder in bundle.manifest.encoders.parts.items():
        chosen = {one["runtime"]: set(one["fp32"]) for one in parity(within)["encoders"] if one["part"] == part}
        with safe_open(bundle.path(encoder.file), "np") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        for name, kind in kinds.items():
            if match := re.fullmatch(r"((?:encoder\.)?layers\.\d+\.(?:self_attn\.\w+_proj|fc[12]))\.weight", name):
                product = re.sub(r"[qkv]_proj$", "qkv_proj", match[1])
                assert kind == ("F32" if product in chosen["native"] else "U8"), name
                assert (match[1] in encoder.fp32) == (product in chosen["native"])
        graph = onnx.load(bundle.path(bundle.graph(part).file), load_external_data=False).graph
        floats = {name for node in graph.node if node.op_type == "MatMul" for name in node.input}
        floats = {name for name in floats if name.endswith(("_proj.weight", "fc1.weight", "fc2.weight"))}
        assert floats == {f"{product}.weight" for product in chosen["onnx"]}


def test_it_answers_on_either(within: Path) -> None:
    for runtime in RUNTIMES:
        with Engine.load(within, encoder=runtime) as engine:
            assert check(engine).logits_difference < 1e-3


def test_a_list_that_is_not_the_files_is_refused(within: Path, tmp_path: Path) -> None:
    """The manifest says which matrices are floats: with another list no tensor fits."""
    manifest = open_bundle(within).manifest
    assert manifest.encoders
    whisper = manifest.encoders.whisper
    assert whisper.fp32
    for names in ([], [*whisper.fp32, *{"layers.1.fc2", "layers.0.fc1"} - {*whisper.fp32}]):
        copy = Path(shutil.copytree(within, tmp_path / str(len(names))))
        reseal(copy, lambda data, names=names: data["encoders"]["whisper"].update(fp32=names))  # type: ignore[misc]
        with pytest.raises(BundleError, match=r"layers\.\d.*, expected"):
            Engine.load(copy, encoder="native")
    with pytest.raises(ConfigError, match="fp32 beside others of bf16; expected int8"):
        replace(whisper, precision="bf16")
    with pytest.raises(ConfigError, match="names a matrix twice"):
        replace(whisper, fp32=("layers.0.fc1", "layers.0.fc1"))


def test_what_cannot_be_chosen_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"encoder_budget": 0.02}, "encoder_budget is 0.02 with fp32 encoders"),
        (
            {"encoder_precision": "int8", "encoder_budget": 0.0},
            "encoder_budget is 0; expected a relative error above 0",
        ),
        ({"encoder_precision": "int8", "encoder_budget": float("nan")}, "encoder_budget is nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            ExportOptions(**options)
    with pytest.raises(ConfigError, match=r"encoder_budget 0.02 is measured on calibration speech"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", replace(INT8, encoder_budget=0.02))
    assert not (tmp_path / "bundle").exists()


def test_products_of_other_layers(speech_annotation: Path, tmp_path: Path) -> None:
    """EAT's, and thin matrices beside whole ones: the same on both runtimes, and nearer than without."""
    checkpoint = tmp_path / "checkpoint"
    init_checkpoint(config(EAT, whisper=replace(ODD_WHISPER, ranks=RANKS)), checkpoint)
    near = export_bundle(
        checkpoint, tmp_path / "near", replace(INT8, encoder_budget=0.006), calibration_speech=speech_annotation
    )
    far = export_bundle(checkpoint, tmp_path / "far", INT8)
    encoders = open_bundle(near).manifest.encoders
    assert encoders
    assert encoders.audio_encoder
    assert encoders.whisper.fp32
    assert encoders.audio_encoder.fp32
    assert {*encoders.audio_encoder.fp32} <= {
        f"blocks.{layer}.{name}" for layer in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    for part in LOADERS:
        for stage in (part, f"{part}, native"):
            assert parity(near)["stages"][stage]["relative"] < parity(far)["stages"][stage]["relative"]
    for runtime in RUNTIMES:
        with Engine.load(near, encoder=runtime) as engine:
            assert check(engine).logits_difference < 1e-3
