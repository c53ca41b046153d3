"""Bundles whose encoders run on our own kernels: whole exports, what is in them, and what is never written."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export import bundle as bundle_module
from salmonrun.export.parity.speech import pairs
from salmonrun.kernels.formats import dequantize_t16, unpack_bfloat16_t16, unpack_floats_t16
from salmonrun.runtime import ConfigError, Engine, GenerationConfig
from salmonrun.runtime.bundle import NATIVE_PAGE, open_bundle
from salmonrun.runtime.encoders import EncoderName
from salmonrun.runtime.errors import BundleError, MissingExtraError, ParityError
from salmonrun.runtime.golden import check
from salmonrun.training.checkpoint import open_checkpoint
from salmonrun.training.starting.init import init_checkpoint
from tests.helpers.encoders import EAT, FILES, config, size
from tests.helpers.exports import TINY, parity

pytest.importorskip("salmonrun.kernels.cpu._native")

INT8 = ExportOptions(encoder_precision="int8", llm_precision="int8")


@pytest.fixture(scope="module")
def both(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("both") / "bundle", INT8)


def test_a_bundle_for_both_runs_on_either(both: Path, speech: Path) -> None:
    embeds = []
    assert open_bundle(both).manifest.encoder_runtimes == ("onnx", "native")
    cases: list[tuple[EncoderName, str]] = [("auto", "native"), ("native", "native"), ("onnx", "onnx")]
    for name, runs in cases:
        for decoder in ("onnx", "native"):  # each pair has a golden run of its own
            assert check(Engine.load(both, encoder=name, decoder=decoder)).logits_difference < 1e-3
        engine = Engine.load(both, encoder=name)
        report = engine.report()
        assert report.encoder == runs
        assert (report.encoder_instruction_set is not None) == (runs == "native")
        assert (report.providers["whisper"] == ()) == (report.providers["audio_encoder"] == ()) == (runs == "native")
        assert report.providers["qformer"] == ("CPUExecutionProvider",)
        embeds.append(engine.model.encoder.encode(engine.model.load_audio(speech, None)))
    np.testing.assert_array_equal(embeds[0], embeds[1])
    assert 0 < np.sqrt(np.mean((embeds[0] - embeds[2]) ** 2) / np.mean(embeds[2] ** 2)) < 0.05


def test_the_gate_measures_both(both: Path) -> None:
    measured = parity(both)
    for part in FILES:
        for stage in (part, f"{part}, native"):
            assert 1e-4 < measured["stages"][stage]["relative"] < 0.04
    assert set(measured["speech"]) == {"onnx", "native"}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_bundle_for_our_own_kernels_alone(
    tiny_checkpoint: Path, tmp_path: Path, speech: Path, precision: Any
) -> None:
    options = ExportOptions(encoder_precision=precision, encoder="native", decoder="onnx")
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    assert set(open_bundle(bundle).manifest.graphs) == {"qformer", "llm"}
    assert not list(bundle.glob("whisper.onnx*"))
    assert not list(bundle.glob("audio_encoder.onnx*"))
    assert set(parity(bundle)["stages"]) == {"whisper", "audio_encoder", "qformer", "llm"}
    engine = Engine.load(bundle)
    assert engine.report().encoder == "native"
    assert check(engine).passed
    assert len(engine.generate(speech, task="asr", config=GenerationConfig(max_new_tokens=5)).token_ids) <= 5
    with pytest.raises(BundleError, match=r"no graph 'whisper', only .* for native: choose another encoder"):
        Engine.load(bundle, encoder="onnx")


def test_no_session_is_made_of_a_graph_that_is_not_used(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    plain = onnxruntime.InferenceSession

    def session(path: str, *arguments: Any, **options: Any) -> Any:
        made.append(Path(path).name)
        return plain(path, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    Engine.load(both, threads=1)
    assert made == ["qformer.onnx"]


def test_a_bundle_for_onnx_runtime_alone_says_so(tiny_bundle: Path) -> None:
    assert open_bundle(tiny_bundle).manifest.encoders is None
    assert "encoders" not in (tiny_bundle / "bundle.json").read_text()
    with pytest.raises(
        BundleError, match=r"no weights of whisper for our own kernels, only for onnx: .*--encoder native"
    ):
        Engine.load(tiny_bundle, encoder="native")


def test_one_copy_of_the_weights_is_smaller(tmp_path: Path) -> None:
    init_checkpoint(config(EAT), tmp_path / "checkpoint")
    sizes = {
        encoder: size(export_bundle(tmp_path / "checkpoint", tmp_path / encoder, ExportOptions(encoder=encoder)))
        for encoder in ("onnx", "native", "both")
    }
    assert max(sizes["onnx"], sizes["native"]) < sizes["both"]


def test_exporting_twice_gives_the_same_bytes(both: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    again = export_bundle(tiny_checkpoint, tmp_path / "bundle", INT8)
    for file in FILES.values():
        content = (both / file).read_bytes()
        assert len(content) % NATIVE_PAGE == 0
        assert content == (again / file).read_bytes()


# What is in the files


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_files_have_the_checkpoints_tensors(tiny_checkpoint: Path, tmp_path: Path, precision: Any) -> None:
    """Read by safetensors' own library."""
    options = ExportOptions(encoder_precision=precision, encoder="native")
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    stored = load_file(bundle / FILES["whisper"])
    source = open_checkpoint(tiny_checkpoint).parts["whisper"]
    names = {name for name in stored if not name.startswith("padding.")}
    assert {name.removesuffix(".scale") for name in names} == set(source)
    assert any(name.endswith(".scale") for name in names) == (precision == "int8")
    weight = source["layers.1.fc1.weight"]().numpy()
    packed = stored["layers.1.fc1.weight"]
    scale = stored.get("layers.1.fc1.weight.scale")
    unpacked = {
        "fp32": lambda: unpack_floats_t16(packed),
        "bf16": lambda: unpack_bfloat16_t16(packed.view(np.uint16)),
        "int8": lambda: dequantize_t16(packed, scale),
    }
    found = unpacked[precision]()[: weight.shape[0], : weight.shape[1]]
    steps = {"fp32": 0, "bf16": 2**-8, "int8": 1 / 127}  # of the largest weight
    assert np.abs(found - weight).max() <= steps[precision] * np.abs(weight).max()
    convolution = source["conv2.weight"]().numpy()  # [out, in, 3]
    taps = unpack_floats_t16(stored["conv2.weight"])[: len(convolution)].reshape(len(convolution), 3, -1)
    np.testing.assert_array_equal(taps.transpose(0, 2, 1), convolution)
    np.testing.assert_array_equal(stored["layer_norm.bias"], source["layer_norm.bias"]().numpy())


# What is never written


def unscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    from salmonrun.export.weights.encoders import _Writer

    plain = _Writer.linear
    monkeypatch.setattr(_Writer, "linear", lambda writer, name, factor=1.0: plain(writer, name))


@pytest.mark.parametrize(
    ("stage", "corrupt"),
    [
        (
            "whisper, native",
            lambda patch: patch.setattr(
                "salmonrun.export.weights.encoders.over_time", lambda weight: weight.reshape(len(weight), -1)
            ),
        ),
        ("audio_encoder, native", unscaled),
    ],
)
def test_wrong_weights_are_never_written(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, stage: str, corrupt: Callable[[Any], None]
) -> None:
    corrupt(monkeypatch)
    with pytest.raises(ParityError, match=rf"^{stage}: largest difference"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runtime", ["onnx", "native"])
@pytest.mark.parametrize("part", list(FILES))
def test_a_check_finds_swapped_weights(tmp_path: Path, both: Path, runtime: EncoderName, part: str) -> None:
    """Of the same dimensions: an integrity check alone finds nothing."""
    init_checkpoint(TINY, tmp_path / "checkpoint", seed=1)
    other = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", INT8)
    for name in (FILES[part],) if runtime == "native" else (f"{part}.onnx", f"{part}.onnx.data"):
        (other / name).write_bytes((both / name).read_bytes())
    passed = {name: check(Engine.load(other, encoder=name, verify=False)).passed for name in ("onnx", "native")}
    assert passed == {"onnx": runtime == "native", "native": runtime == "onnx"}


# Options


@pytest.mark.parametrize("encoder", ["native", "both"])
def test_our_own_kernels_run_on_a_cpu(encoder: Any) -> None:
    with pytest.raises(ConfigError, match=rf"encoder is '{encoder}' with target 'cuda'; .* use --encoder onnx"):
        ExportOptions(encoder=encoder, target="cuda")
    assert ExportOptions(target="cuda").encoders == ("onnx",)
    assert ExportOptions().encoders == ExportOptions(encoder="both").encoders == ("onnx", "native")


def test_without_kernels_there_are_graphs_alone(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bundle_module, "kernels", lambda: (_ for _ in ()).throw(MissingExtraError("no kernels")))
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert open_bundle(bundle).manifest.encoder_runtimes == ("onnx",)
    assert "the bundle gets weights for ONNX Runtime alone: no kernels" in caplog.text
    for options in (ExportOptions(encoder="native"), ExportOptions(encoder="both", llm_precision="int8")):
        with pytest.raises(MissingExtraError, match="no kernels"):
            export_bundle(tiny_checkpoint, tmp_path / "native", options)
    assert replace(INT8, encoder="onnx").encoders == ("onnx",)


def test_tokens_are_compared_as_machines_run_them() -> None:
    assert pairs(["onnx", "native"], ["onnx", "native"]) == {"onnx": {"onnx": "onnx"}, "native": {"native": "native"}}
    assert pairs(["onnx", "native"], ["onnx"]) == {"onnx": {"onnx": "onnx"}, "native": {"native": "onnx"}}
    either = {"onnx, onnx encoders": "onnx", "onnx, native encoders": "native"}
    assert pairs(["onnx"], ["onnx", "native"]) == {"onnx": either}
    assert pairs(["native"], ["native"]) == {"native": {"native": "native"}}
