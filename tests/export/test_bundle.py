"""What an export writes: files and their manifest, whatever the precision and target, and a check that finds swaps."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.graphs.builder import INLINE_BYTES, PAGE
from salmonrun.runtime import Engine, GenerationConfig, load_audio
from salmonrun.runtime.bundle import file_sha256, open_bundle
from salmonrun.runtime.decoder import Decoder, prefill, verify
from salmonrun.runtime.decoders.onnx_decoder import OnnxDecoder
from salmonrun.runtime.golden import check
from salmonrun.runtime.manifest import MANIFEST, FileSpec, Manifest, OnnxWeights, manifest_bytes
from salmonrun.runtime.prompt import prompt_ids
from salmonrun.runtime.schema import from_dict
from salmonrun.training import load
from salmonrun.training.model.config import load_config
from salmonrun.training.starting.init import init_checkpoint
from tests.helpers.exports import TINY, TOLERANCE, noise, parity

F32 = npt.NDArray[np.float32]


@pytest.mark.parametrize(
    ("encoder", "llm", "inexact"),
    [
        ("int8", "int8", {"whisper", "audio_encoder", "llm"}),
        ("int8", "int4", {"whisper", "audio_encoder", "llm"}),
        ("fp32", "int4", {"llm"}),
    ],
)
def test_quantized_bundles(tmp_path: Path, tiny_checkpoint: Path, encoder: Any, llm: Any, inexact: set[str]) -> None:
    # A random model amplifies what 4 bits round off more than a trained one does.
    options = ExportOptions(encoder_precision=encoder, llm_precision=llm, parity_budget=1.0)
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    measured = parity(bundle)
    assert measured["budget"] == options.parity_budget
    for name, error in measured["stages"].items():
        assert (error["relative"] > 1e-4) == (name.removesuffix(", native") in inexact), name
        assert error["relative"] <= options.parity_budget
    engine = Engine.load(bundle)
    report = check(engine)
    assert report.passed
    precision = engine.bundle.manifest.precision
    assert (precision.whisper, precision.audio_encoder, precision.qformer) == (encoder, encoder, "fp32")
    weights = engine.bundle.onnx_weights
    assert (weights.precision, weights.lm_head, weights.dtype) == (llm, "int8", "float32")
    assert engine.generate(noise(1.5, 0), task="asr", config=GenerationConfig(max_new_tokens=5)).token_ids


def initializers(bundle: Path) -> list[tuple[Path, onnx.TensorProto]]:
    graphs = sorted(bundle.rglob("*.onnx"))
    return [(path, tensor) for path in graphs for tensor in onnx.load(path, load_external_data=False).graph.initializer]


def test_large_weights_lie_on_pages_and_small_ones_in_the_graph(tiny_bundle: Path) -> None:
    external = 0
    for path, tensor in initializers(tiny_bundle):
        size = int(np.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            assert size <= INLINE_BYTES, tensor.name
            continue
        external += 1
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert size > INLINE_BYTES
        assert int(place["offset"]) % PAGE == 0
        assert int(place["length"]) == size
        assert place["location"] == f"{path.name}.data"
        assert int(place["offset"]) + size <= path.with_name(place["location"]).stat().st_size
    assert external > 10


@pytest.mark.parametrize("name", ["whisper", "audio_encoder", "qformer"])
def test_encoder_graphs_are_valid_onnx(tiny_bundle: Path, name: str) -> None:
    # The LLM's has SimplifiedLayerNormalization, which onnxruntime puts into the standard domain, and the standard not.
    onnx.checker.check_model(str(tiny_bundle / f"{name}.onnx"), full_check=True)


def test_no_file_but_those_in_the_manifest_and_the_card(tiny_bundle: Path) -> None:
    found = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    manifest = open_bundle(tiny_bundle).manifest
    assert found == {*manifest.files, MANIFEST, "README.md"}
    assert {"golden.npz", "parity.json", "tokenizer.json", "llm/embed_tokens.bin"} < found


def test_what_the_manifest_says(golden_bundle: Path, golden_checkpoint: Path) -> None:
    manifest = open_bundle(golden_bundle).manifest
    assert manifest.target == "cpu"
    assert manifest.provenance.model == "llm"
    assert manifest.provenance.lora_scale == 4.0
    assert manifest.provenance.sources["audio_encoder/beats.pt"]
    own = file_sha256(golden_checkpoint / "model.safetensors")
    assert manifest.provenance.sources["model.safetensors"] == own
    assert manifest.llm.max_length == 1024  # what the LLM has, though the default is more
    assert (manifest.llm.layers, manifest.llm.kv_heads, manifest.llm.head_dim) == (3, 2, 16)
    config = load_config(golden_checkpoint).llm
    assert (manifest.llm.heads, manifest.llm.eps) == (config["num_attention_heads"], config["rms_norm_eps"])
    assert (manifest.llm.windows, manifest.llm.experts) == ((None, None, None), None)
    assert manifest.prompt.stop_token_ids == (513, 517, 518)
    assert set(manifest.graphs) == {"whisper", "audio_encoder", "qformer", "llm"}


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    again = export_bundle(tiny_checkpoint, tmp_path / "again", ExportOptions(encoder="onnx"))
    first, second = (open_bundle(folder).manifest for folder in (tiny_bundle, again))
    measured = {"parity.json", "golden.npz"}  # float sums may round differently from run to run
    assert first.files.keys() == second.files.keys() > measured
    assert {name for name in first.files if first.files[name] != second.files[name]} <= measured
    assert replace(first, files={}, manifest_sha256="") == replace(second, files={}, manifest_sha256="")
    runs = [np.load(folder / "golden.npz") for folder in (tiny_bundle, again)]
    for name in ("pcm", "prompt", "tokens"):
        assert np.array_equal(runs[0][name], runs[1][name])
    assert np.abs(runs[0]["logits"] - runs[1]["logits"]).max() <= TOLERANCE


def rewrite_manifest(bundle: Path, **changes: Any) -> None:
    """Hash every file anew, and the manifest with them: an integrity check alone finds nothing."""
    manifest = from_dict(Manifest, json.loads((bundle / MANIFEST).read_text()), "manifest")
    files = {name: FileSpec((bundle / name).stat().st_size, file_sha256(bundle / name)) for name in manifest.files}
    (bundle / MANIFEST).write_bytes(manifest_bytes(replace(manifest, files=files, **changes)))


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights in the same dimensions."""
    folder = tmp_path_factory.mktemp("other")
    init_checkpoint(TINY, folder / "checkpoint", seed=1)
    return export_bundle(folder / "checkpoint", folder / "bundle")


@pytest.mark.parametrize(
    "part", ["whisper.onnx", "audio_encoder.onnx", "qformer.onnx", "llm/decoder.onnx", "llm/embed"]
)
def test_a_check_finds_swapped_weights(tmp_path: Path, tiny_bundle: Path, other_bundle: Path, part: str) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    names = [name for name in open_bundle(bundle).manifest.files if name.startswith(part)]
    assert names
    for name in names:
        shutil.copyfile(other_bundle / name, bundle / name)
    rewrite_manifest(bundle)
    report = check(Engine.load(bundle))
    assert not report.passed
    assert report.logits_difference > report.tolerance


def test_a_check_passes_after_a_mere_rewrite(tmp_path: Path, tiny_bundle: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    rewrite_manifest(bundle)
    assert check(Engine.load(bundle)).passed
    assert (bundle / MANIFEST).read_bytes() == (tiny_bundle / MANIFEST).read_bytes()


def test_a_bundle_for_cuda_has_a_float16_llm(tmp_path: Path, tiny_checkpoint: Path, tiny_engine: Engine) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions(target="cuda"))
    bundle = open_bundle(folder)
    assert bundle.manifest.target == "cuda"
    assert bundle.onnx_weights == OnnxWeights("float16", "fp16", "fp16")
    assert parity(folder)["stages"]["whisper"]["max_abs"] <= TOLERANCE  # the encoders stay in float32
    decoder = OnnxDecoder.load(bundle, "cpu", 2)
    exact = tiny_engine.model.decoder
    ids = prompt_ids(bundle.manifest.prompt, tiny_engine.model.tokenizer, "What is said?")
    audio_embeds = tiny_engine.model.encoder.encode(noise(2.0, 5))
    inputs = np.concatenate([exact.embed(ids.before), audio_embeds, exact.embed(ids.after)])
    tokens = list(b"an answer")
    got, expected = (all_logits(each, inputs, tokens) for each in (decoder, exact))
    assert got.dtype == np.float32
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 2e-2
    assert (got.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.5


def all_logits(decoder: Decoder[Any], inputs: F32, tokens: list[int]) -> F32:
    with decoder.open(1, len(inputs) + len(tokens)) as (slot,):
        return np.concatenate([prefill(decoder, slot, inputs)[None], verify(decoder, slot, tokens)])


def test_a_quantized_bundle_for_cuda(tmp_path: Path, tiny_checkpoint: Path) -> None:
    options = ExportOptions(target="cuda", llm_precision="int4", parity_budget=1.0)
    folder = export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    assert check(Engine.load(folder, device="cpu")).passed


def test_the_window_may_be_overridden(tmp_path: Path, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    assert open_bundle(tiny_bundle).manifest.audio.window == "padded"
    folder = export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions(window="trimmed"))
    assert open_bundle(folder).manifest.audio.window == "trimmed"
    engine = Engine.load(folder)
    assert len(engine.model.encoder.encode(noise(1.0, 0))) == 3  # windows of 17 frames over 50
    assert check(engine).passed


def test_a_recording_to_prove_with(tmp_path: Path, tiny_checkpoint: Path, speech: Path) -> None:
    audio = load_audio(speech)
    folder = export_bundle(tiny_checkpoint, tmp_path / "bundle", golden_audio=audio)
    assert np.array_equal(np.load(folder / "golden.npz")["pcm"], audio.pcm)
    assert parity(folder)["audio_s"] == pytest.approx(audio.duration_s)
    assert check(Engine.load(folder)).passed


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "float16"), (torch.bfloat16, "bfloat16")])
def test_embeddings_keep_the_dtype_of_the_checkpoint(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    init_checkpoint(TINY, tmp_path / "checkpoint", dtype=dtype)
    folder = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    engine = Engine.load(folder)
    embedding = engine.bundle.manifest.llm.embedding
    assert embedding.dtype == name
    assert (folder / embedding.file).stat().st_size == 2 * embedding.rows * embedding.dim
    model = load(tmp_path / "checkpoint")
    ids = list(range(embedding.rows))
    assert np.array_equal(engine.model.decoder.embed(ids), model.embed_tokens(ids)[0].detach().numpy())
    assert parity(folder)["greedy_tokens_equal"]
