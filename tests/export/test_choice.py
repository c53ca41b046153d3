"""--budget: the smallest LLM within it; and calibrations that were killed go on from where they were."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.__main__ import main
from salmonrun.export.options import Budget
from salmonrun.export.weights import calibrated
from salmonrun.export.weights.products import products
from salmonrun.kernels.formats import dequantize_super_t16, dequantize_t16
from salmonrun.runtime import Engine
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import ConfigError, ParityError
from salmonrun.runtime.parity import Choice, Tried, read_parity
from salmonrun.training.checkpoint import open_checkpoint
from tests.helpers.exports import noise, parity, write_speech
from tests.helpers.kernels import needs_kernels

ROOT = Path(__file__).parents[2]
ANY: dict[str, Any] = {"llm_precision": "int4", "parity_budget": 2.0, "token_agreement": 0.0}


def chosen(checkpoint: Path, out: Path, annotation: Path, budget: Budget, **options: Any) -> Choice:
    bundle = export_bundle(checkpoint, out, ExportOptions(**ANY, budget=budget, **options), None, annotation)
    choice = read_parity(open_bundle(bundle)).choice
    assert choice
    return choice


def of(choice: Choice, setting: str) -> Tried:
    return next(one for one in choice.tried if one.setting == setting)


def left_behind(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def test_products_are_what_the_kernels_take_at_once() -> None:
    layer = "model.layers.3."
    parts = [*(f"self_attn.{p}_proj" for p in "qkvo"), *(f"mlp.{p}_proj" for p in ("gate", "up", "down"))]
    others = ["self_attn.q_norm.weight", "self_attn.q_proj.bias", "mlp.experts.0.up_proj.weight", "mlp.gate.weight"]
    names = [*(f"{layer}{part}.weight" for part in parts), *(layer + name for name in others), "lm_head.weight"]
    assert products(names) == {
        f"{layer}self_attn.qkv": tuple(f"{layer}self_attn.{p}_proj" for p in "qkv"),
        f"{layer}self_attn.o": (f"{layer}self_attn.o_proj",),
        f"{layer}mlp.gate_up": (f"{layer}mlp.gate_proj", f"{layer}mlp.up_proj"),
        f"{layer}mlp.down": (f"{layer}mlp.down_proj",),
    }


@dataclass(frozen=True)
class Exported:
    """Bundles within a loose budget, and within one between what int4 and what int8 holds."""

    folder: Path
    annotation: Path
    loose: Choice
    limit: float
    mixed: Choice


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    pytest.importorskip("salmonrun.kernels.cpu._native")
    folder = tmp_path_factory.mktemp("chosen")
    annotation = write_speech(folder, 6)
    loose = chosen(tiny_checkpoint, folder / "int4", annotation, Budget("kl", 1e9))
    limit = (of(loose, "int4, calibrated").kl * of(loose, "int8").kl) ** 0.5
    mixed = chosen(tiny_checkpoint, folder / "mixed", annotation, Budget("kl", limit))
    return Exported(folder, annotation, loose, limit, mixed)


def test_a_loose_budget_takes_int4_a_tight_one_int8_and_one_between_both(
    tiny_checkpoint: Path, exported: Exported, tmp_path: Path
) -> None:
    loose, mixed, limit = exported.loose, exported.mixed, exported.limit
    assert loose.chosen == "int4, calibrated"
    assert (loose.recordings, loose.tokens % loose.recordings) == (3, 0)
    int4, int8 = of(loose, "int4, calibrated"), of(loose, "int8")
    nearest = of(loose, "int4, nearest")
    assert nearest.bytes == int4.bytes
    assert nearest.kl != int4.kl
    assert int8.kl < int4.kl
    assert int8.bytes > int4.bytes
    assert mixed.chosen.endswith("products in int8")
    assert of(mixed, mixed.chosen).kl <= limit
    assert all(one.kl > limit for one in mixed.tried if one.bytes < of(mixed, mixed.chosen).bytes)
    tight = chosen(tiny_checkpoint, tmp_path / "int8", exported.annotation, Budget("kl", int8.kl))
    assert of(tight, tight.chosen).kl <= int8.kl
    assert not left_behind(tmp_path)
    assert not left_behind(exported.folder)
    check_mixed(tiny_checkpoint, exported.folder / "mixed", mixed)


def check_mixed(checkpoint: Path, folder: Path, choice: Choice) -> None:
    """Matrices have the bits that the manifest says, those of a product alike; both decoders run them."""
    bundle = open_bundle(folder)
    weights = bundle.manifest.llm.weights
    assert weights.native
    assert weights.onnx
    assert weights.native.int8 == weights.onnx.int8
    count = sum(
        set(names) <= set(weights.native.int8) for names in products(open_checkpoint(checkpoint).merged_llm()).values()
    )
    assert choice.chosen.startswith(f"{count} of ")
    stored, merged = load_file(bundle.path("llm/native.bin")), open_checkpoint(checkpoint).merged_llm()
    for name in (name for names in products(merged).values() for name in names):
        packed, scale = stored[f"{name}.weight"], stored[f"{name}.weight.scale"]
        assert packed.shape[2] == (8 if name in weights.native.int8 else 4), name
        original = merged[f"{name}.weight"]().numpy()
        if name in weights.native.int8:
            whole = dequantize_t16(packed, scale)
        else:
            whole = dequantize_super_t16(packed, stored[f"{name}.weight.multiple"], scale)
        found = whole[: len(original), : original.shape[1]]
        off = float(np.sqrt(np.mean((found - original) ** 2) / np.mean(original**2)))
        assert off < 0.02 if name in weights.native.int8 else 0.02 < off < 0.3, name
    for decoder in ("onnx", "native"):
        with Engine.load(folder, decoder=decoder) as engine:
            assert engine.report().precision["llm"] == f"int4, {len(weights.native.int8)} matrices int8"
            assert engine.generate(noise(1.0, seed=1), prompt="What is it?").token_ids
    stages = parity(folder)["stages"]
    assert stages["llm"]["relative"] == pytest.approx(stages["llm, native"]["relative"], rel=0.3)
    assert "the smallest within" in bundle.manifest.provenance.quantization
    assert "products in int8, chosen |" in (folder / "README.md").read_text()


def test_what_nothing_can_hold_is_refused_and_what_was_calibrated_is_kept(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("salmonrun.kernels.cpu._native")
    annotation = write_speech(tmp_path, 4)
    with pytest.raises(ParityError, match=r"no setting is within kl=1e-12; the nearest is int8: .* raise the budget"):
        chosen(tiny_checkpoint, tmp_path / "b", annotation, Budget("kl", 1e-12))
    assert not (tmp_path / "b").exists()
    (kept,) = left_behind(tmp_path)
    assert str(kept) in caplog.text
    chosen(tiny_checkpoint, tmp_path / "b", write_speech(tmp_path, 2), Budget("kl", 1e9))  # other recordings
    assert not left_behind(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.99", "expected agreement=SHARE or kl=NATS"),
        ("wer=0.1", "budget is 'wer=0.1'"),
        ("kl=x", "budget is 'kl=x'"),
        ("kl=nan", "budget is 'kl=nan'"),
        ("kl=0", "above 0"),
        ("agreement=1.5", "at most 1"),
    ],
)
def test_budgets_that_say_nothing(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget.parse(text)
    with pytest.raises(SystemExit):
        main(["nowhere", "bundle", "--budget", text])
    assert "error: --budget is" in capsys.readouterr().err


@needs_kernels
def test_a_budget_needs_speech_and_chooses_the_precision_itself(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave out --llm-precision"):
        ExportOptions(llm_precision="int8", budget=Budget("kl", 0.1))
    with pytest.raises(ConfigError, match="give at least 2 recordings"):
        export_bundle(tiny_checkpoint, tmp_path / "b", ExportOptions(**ANY, budget=Budget("kl", 0.1)))


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)  # as the tests have
from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.options import Budget
from salmonrun.export.budget import choice
from salmonrun.export.weights import calibrated
def killed_behind(module, name, last):
    work = getattr(module, name)
    def then_killed(place, *rest):
        work(place, *rest)
        if last in str(place) + str(rest):
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, then_killed)
killed_behind(calibrated, "save", "behind-1.npz")
killed_behind(choice, "append", "layers.1.self_attn.o")
checkpoint, out, annotation, limit = sys.argv[1:]
options = ExportOptions(llm_precision="int4", parity_budget=2.0, token_agreement=0.0, budget=Budget("kl", float(limit)))
export_bundle(checkpoint, out, options, None, annotation)
"""


@pytest.mark.tools
def test_a_killed_calibration_goes_on_to_the_same_bundle(
    tiny_checkpoint: Path, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotation, limit, out = exported.annotation, exported.limit, tmp_path / "cut"
    command = [sys.executable, "-c", KILLED, str(tiny_checkpoint), str(out), str(annotation), str(limit)]
    for left in (["behind-1.npz"], ["behind-2.npz", "products.jsonl"]):
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
        kept = next(path for path in left_behind(tmp_path) if "calibration" in path.name)
        assert (
            sorted(path.name for path in kept.iterdir() if path.suffix != ".bin" and "layers" not in path.name) == left
        )
    measured = [json.loads(line) for line in (kept / "products.jsonl").read_text().splitlines()[1:]]
    assert measured[-1]["product"] == "model.layers.1.self_attn.o"
    rounded = counted(monkeypatch, calibrated, "round_compensated")
    assert chosen(tiny_checkpoint, out, annotation, Budget("kl", limit)) == exported.mixed
    assert rounded == []
    assert not left_behind(tmp_path)
    for file in ("llm/native.bin", "llm/decoder.onnx", "llm/decoder.onnx.data"):
        assert (out / file).read_bytes() == (exported.folder / "mixed" / file).read_bytes()


def counted(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[str]:
    """A call of the function is one entry."""
    calls: list[str] = []
    work: Callable[..., Any] = getattr(module, name)

    def call(*arguments: Any) -> Any:
        calls.append(name)
        return work(*arguments)

    monkeypatch.setattr(module, name, call)
    return calls
