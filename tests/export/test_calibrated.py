"""int4 bundles whose weights are rounded on speech: what PyTorch's matrices see is what they are rounded for."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export import bundle as bundle_module
from salmonrun.export import llm as llm_module
from salmonrun.export.confidence import read_speech
from salmonrun.export.graphs.linear import BLOCK
from salmonrun.export.progress import Progress
from salmonrun.export.weights.calibrated import BITS, rounded_llm
from salmonrun.export.weights.rounding import inverse_root, round_compensated
from salmonrun.kernels.formats import SUPER_BLOCK, dequantize_super_t16
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.prompt import prompt_ids
from salmonrun.training.checkpoint import Checkpoint, load, open_checkpoint
from salmonrun.training.data.annotation import Entry
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.tensors import LazyTensors
from tests.helpers.exports import parity, write_speech


@torch.inference_mode()
def seen_by_pytorch(source: Checkpoint, annotation: Path) -> dict[str, Tensor]:
    """The sums of x x^T over all inputs x of each matrix: the whole model, one recording after another."""
    model = load(source.folder)
    seen: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))

    def see(name: str, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2)
        seen[name] = seen[name] + x.T @ x

    for name, module in model.llm.named_modules():
        if isinstance(module, nn.Linear) and "lora_" not in name and ".layers." in name:
            module.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs))
    for entry in read_speech(annotation, source.config):
        ids = prompt_ids(model.prompts, model.tokenizer, model.prompts.tasks[entry.task][0])
        audio = model.encode(load_recording(entry, source.config.audio))
        model.llm(inputs_embeds=model.wrap(audio, ids, model.tokenizer.encode(entry.text))[None])
    return {f"{name.removesuffix('.base_layer')}.weight": gram for name, gram in seen.items()}


@torch.inference_mode()
def test_matrices_are_rounded_for_what_they_see(tiny_checkpoint: Path, tmp_path: Path) -> None:
    annotation, source = write_speech(tmp_path, 5), open_checkpoint(tiny_checkpoint)
    with Progress(1, show=False) as progress:
        rounded = rounded_llm(source, read_speech(annotation, source.config), tmp_path, progress)
    merged, grams = source.merged_llm(), seen_by_pytorch(source, annotation)
    assert len(grams) == 7 * source.config.llm["num_hidden_layers"]
    for name, get in merged.items():
        expected = get()
        if name in grams:
            expected = round_compensated(expected, inverse_root(grams[name]), BITS, BLOCK, super_block=SUPER_BLOCK)
        off = (rounded[name]() - expected).abs()
        # Sums in another order may tip a value from one step to the next.
        assert (off > 1e-6).float().mean() < 0.01, name


def test_both_decoders_have_the_same_values(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("salmonrun.kernels.cpu._native")
    options = ExportOptions(llm_precision="int4", parity_budget=2, token_agreement=0)
    annotation = write_speech(tmp_path, 5)
    bundle = open_bundle(export_bundle(tiny_checkpoint, tmp_path / "b", options, calibration_speech=annotation))
    said = bundle.manifest.provenance.quantization
    assert said == "symmetric, blocks of 32 in super-blocks of 128, rounded on calibration speech (GPTQ)"
    assert {path.name for path in bundle.folder.iterdir() if path.is_dir()} == {"llm"}
    stored = load_file(bundle.path("llm/native.bin"))
    source = open_checkpoint(tiny_checkpoint)
    with Progress(1, show=False) as progress:
        rounded = rounded_llm(source, read_speech(annotation, source.config)[::2], tmp_path, progress)
    name = "model.layers.0.mlp.down_proj.weight"
    found = dequantize_super_t16(*(stored[f"{name}{part}"] for part in ("", ".multiple", ".scale")))
    rows, columns = rounded[name]().shape
    np.testing.assert_array_equal(found[:rows, :columns], rounded[name]().numpy())
    stages = parity(bundle.folder)["stages"]
    assert stages["llm"]["relative"] == pytest.approx(stages["llm, native"]["relative"], rel=0.2)


def test_weights_are_rounded_on_every_other_recording_and_the_threshold_is_measured_on_all(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, list[str]] = {}

    def remember(what: str, entries: Sequence[Entry]) -> None:
        used[what] = [Path(path).stem for entry in entries for path in entry.recordings]

    def measured(bundle: Path, speech: Sequence[Entry], progress: bool) -> None:
        remember("measured", speech)

    def rounded(source: Checkpoint, speech: Sequence[Entry], *rest: Any) -> LazyTensors:
        remember("rounded", speech)
        return rounded_llm(source, speech, *rest)

    monkeypatch.setattr(bundle_module, "measure_threshold", measured)
    monkeypatch.setattr(llm_module, "rounded_llm", rounded)
    options, annotation = (
        ExportOptions(llm_precision="int4", parity_budget=2, token_agreement=0),
        write_speech(tmp_path, 5),
    )
    export_bundle(tiny_checkpoint, tmp_path / "int4", options, calibration_speech=annotation)
    assert used == {"rounded": ["0", "2", "4"], "measured": ["0", "1", "2", "3", "4"]}
    used.clear()
    options = ExportOptions(llm_precision="int8", parity_budget=2, token_agreement=0)
    export_bundle(tiny_checkpoint, tmp_path / "int8", options, calibration_speech=annotation)
    assert used == {"measured": ["0", "1", "2", "3", "4"]}
