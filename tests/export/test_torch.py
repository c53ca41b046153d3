"""Bundles whose LLM runs on PyTorch: exported, proven, loaded and asked as any other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.golden import check
from tests.helpers.exports import noise, parity


def test_in_float32_it_answers_as_onnx_runtime_does(tiny_checkpoint: Path, tiny_engine: Engine, tmp_path: Path) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions(decoder="torch"))
    assert parity(folder)["greedy_tokens_equal"]
    assert "| `llm/torch.bin` | " in (folder / "README.md").read_text()
    with Engine.load(folder) as engine:
        report = engine.report()
        assert (report.decoder, report.device, report.kernels["attention"]) == ("torch", "cpu", "sdpa")
        assert report.precision["llm"] == report.precision["lm_head"] == "fp32"
        for beams in (1, 3):
            config = GenerationConfig(max_new_tokens=12, num_beams=beams)
            audio = noise(1.0, beams)
            expected = tiny_engine.generate(audio, prompt="What is it?", config=config).token_ids
            assert engine.generate(audio, prompt="What is it?", config=config).token_ids == expected
        assert check(engine).passed
    assert tiny_engine.report().kernels == {}


@pytest.mark.parametrize(
    ("precision", "lm_head", "stored"),
    [("fp32", "bf16", "bf16"), ("nf4", "bf16", "nf4")],
)
def test_bundles_for_gpus_are_proven_on_a_cpu(
    precision: Any, lm_head: str, stored: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options = ExportOptions(target="cuda", decoder="torch", llm_precision=precision, parity_budget=1.0)
    folder = export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    weights = open_bundle(folder).manifest.llm.weights
    assert weights.decoders == ("torch",)
    assert weights.torch is not None
    assert (weights.torch.precision, weights.torch.lm_head) == (stored, lm_head)
    assert 1e-6 < parity(folder)["stages"]["llm"]["relative"] < 1
    with Engine.load(folder, device="cpu") as engine:
        assert check(engine).passed
        assert len(engine.generate(noise(1.0, 0), prompt="?", config=GenerationConfig(max_new_tokens=4)).token_ids) <= 4
    assert np.load(folder / "golden.npz")["tokens"].shape == (16,)
