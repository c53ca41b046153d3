"""Bundles for the native decoder: whole exports, and what cannot be exported for it."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export import bundle as bundle_module
from salmonrun.runtime import ConfigError, Engine, GenerationConfig
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.decoder import verify
from salmonrun.runtime.decoders import DecoderName
from salmonrun.runtime.errors import BundleError, MissingExtraError
from salmonrun.runtime.golden import check
from salmonrun.training.starting.init import init_checkpoint
from tests.helpers.exports import TINY, parity
from tests.helpers.llms import BASE, LLMS

pytest.importorskip("salmonrun.kernels.cpu._native")


@pytest.fixture(scope="module")
def both(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ExportOptions(llm_precision="int8", decoder="both")
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("both") / "bundle", options)


def test_a_bundle_for_both_decoders_runs_on_either(both: Path, speech: Path) -> None:
    config, logits = GenerationConfig(max_new_tokens=5), []
    assert open_bundle(both).manifest.llm.weights.decoders == ("onnx", "native")
    cases: list[tuple[DecoderName, str]] = [("auto", "native"), ("native", "native"), ("onnx", "onnx")]
    for name, runs in cases:
        engine = Engine.load(both, decoder=name)
        assert engine.report().decoder == runs
        assert (engine.report().instruction_set is not None) == (runs == "native")
        assert check(engine).passed
        assert len(engine.generate(speech, task="asr", config=config).token_ids) == 5
        decoder = engine.model.decoder
        with decoder.open(1, 20) as (slot,):
            logits.append(verify(decoder, slot, list(range(1, 18))))
    np.testing.assert_array_equal(logits[0], logits[1])
    scale = np.sqrt(np.mean(np.square(logits[2])))
    assert np.sqrt(np.mean(np.square(logits[0] - logits[2]))) <= 0.02 * scale


def test_the_gate_measures_both(both: Path) -> None:
    stages = parity(both)["stages"]
    errors = [stages[name]["relative"] for name in ("llm", "llm, native")]
    assert 0 < errors[1] < 1.5 * errors[0]


def test_a_bundle_for_the_native_decoder_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(llm_precision="int8", decoder="native")
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    assert not (bundle / "llm" / "decoder.onnx").exists()
    engine = Engine.load(bundle)
    assert engine.report().decoder == "native"
    assert check(engine).passed
    with pytest.raises(BundleError, match="choose another decoder"):
        Engine.load(bundle, decoder="onnx")


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_experts_are_exported(tmp_path: Path, name: str) -> None:
    llm = BASE | LLMS[name] | {"vocab_size": TINY.llm["vocab_size"]}
    init_checkpoint(replace(TINY, llm=llm), tmp_path / "checkpoint")
    # Random experts are often almost alike: what int8 rounds off may choose another one.
    options = ExportOptions(llm_precision="int8", decoder="native", parity_budget=1.0)
    engine = Engine.load(export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", options))
    assert engine.report().decoder == "native"
    assert check(engine).passed


@pytest.mark.parametrize(
    "options",
    [
        {"decoder": "native"},
        {"decoder": "both", "llm_precision": "fp32"},
        {"decoder": "native", "llm_precision": "int4", "target": "cuda"},
    ],
)
def test_options_that_do_not_fit(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="the native decoder takes int8, int4 or nf4 on a CPU"):
        ExportOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_bundles_are_for_both_decoders_where_both_can_be_proven(
    precision: Literal["int8", "int4"],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = ExportOptions(llm_precision=precision, parity_budget=1.0)
    assert options.decoders == ("onnx", "native")
    assert replace(options, target="cuda").decoders == ("onnx",)
    assert ExportOptions().decoders == ("onnx",)
    monkeypatch.setattr(bundle_module, "kernels", lambda: (_ for _ in ()).throw(MissingExtraError("no kernels")))
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    assert open_bundle(bundle).manifest.llm.weights.decoders == ("onnx",)
    assert "the bundle gets weights for ONNX Runtime alone: no kernels" in caplog.text
    with pytest.raises(MissingExtraError, match="no kernels"):
        export_bundle(tiny_checkpoint, tmp_path / "native", replace(options, decoder="native"))


def test_nf4_is_for_the_native_and_the_torch_decoder() -> None:
    assert ExportOptions(llm_precision="nf4").decoders == ExportOptions(llm_precision="nf4", decoder="native").decoders
    assert ExportOptions(llm_precision="nf4").decoders == ("native",)
    assert ExportOptions(llm_precision="nf4", target="cuda").decoders == ("torch",)
    for decoder in ("onnx", "both"):
        with pytest.raises(ConfigError, match="nf4 runs in the native and the torch decoder; leave out --decoder"):
            ExportOptions(llm_precision="nf4", decoder=decoder)


def test_a_bundle_of_nf4(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions(llm_precision="nf4", parity_budget=1.0))
    engine = Engine.load(bundle)
    assert engine.report().decoder == "native"
    assert open_bundle(bundle).manifest.precisions("native")["llm"] == "nf4"
    assert check(engine).passed


def test_bundles_without_native_weights_say_so(tiny_bundle: Path) -> None:
    assert Engine.load(tiny_bundle).report().decoder == "onnx"
    with pytest.raises(BundleError, match=r"no weights for the native decoder, only for onnx: .* --decoder native"):
        Engine.load(tiny_bundle, decoder="native")
