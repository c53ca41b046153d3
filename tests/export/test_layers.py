"""transformers' LLM layer by layer against the whole."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from salmonrun.export import export_bundle
from salmonrun.export.parity.layers import LayeredLlm
from salmonrun.training.checkpoint import load_llm, open_checkpoint
from salmonrun.training.model.config import LoraConfig
from salmonrun.training.model.llm import build_llm
from salmonrun.training.starting.init import init_checkpoint
from tests.helpers.exports import TINY
from tests.helpers.llms import BASE

MIXTRAL = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6}
MODELS: dict[str, tuple[dict[str, Any], LoraConfig | None]] = {
    "llama, tied, adapters": ({}, LoraConfig(r=4, alpha=16.0, targets=("q_proj", "down_proj"))),
    "llama, untied, adapters on the output": (
        {"tie_word_embeddings": False},
        LoraConfig(r=4, alpha=16.0, targets=("lm_head",)),
    ),
    "qwen2": ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, None),
    "qwen3": ({"model_type": "qwen3", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, LoraConfig(r=2)),
    "mixtral": (MIXTRAL, LoraConfig(r=2)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_logits_as_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    change, lora = MODELS[name]
    llm = BASE | {"vocab_size": 258} | change
    init_checkpoint(replace(TINY, llm=llm, lora=lora), tmp_path / "checkpoint", dtype=dtype)
    source = open_checkpoint(tmp_path / "checkpoint")
    monkeypatch.setattr("salmonrun.export.parity.layers.HEAD_ROWS", 100)
    layered, whole = LayeredLlm(source), load_llm(source)
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    done: list[int] = []
    layered.progress = done.append
    for last in (1, 10):  # again: layers are filled anew
        with torch.inference_mode():
            expected = whole(torch.tensor([ids]), logits_to_keep=last).logits[0]
        torch.testing.assert_close(layered.logits([layered.embed(ids)], last)[0], expected, atol=1e-6, rtol=1e-6)
    assert sum(done) == 2 * layered.size
    assert all(parameter.is_meta for parameter in layered._llm.model.layers.parameters())


def test_an_export_never_holds_the_whole_llm(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []

    def recorded(*arguments: Any) -> torch.nn.Module:
        built.append(build_llm(*arguments))
        return built[-1]

    monkeypatch.setattr("salmonrun.training.checkpoint.build_llm", recorded)
    filled: set[int] = set()
    to_empty = torch.nn.Module.to_empty

    def watched(module: torch.nn.Module, **options: Any) -> torch.nn.Module:
        layers = built[-1].model.layers
        filled.add(sum(any(not p.is_meta for p in layer.parameters()) for layer in layers))
        return to_empty(module, **options)

    monkeypatch.setattr(torch.nn.Module, "to_empty", watched)
    export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert len(built[0].model.layers) > 1
    assert filled == {0}  # whenever a layer comes, all others are gone
