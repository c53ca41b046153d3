"""LLM folders as transformers publishes them, read under the names of their files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.foreign.part_files import read_llm
from salmonrun.training.model.llm import (
    PLAIN_POSITIONS,
    build_llm,
    llm_config,
    load_base,
    published_parameters,
    training_attention,
)
from salmonrun.training.tensors import LazyTensors, lazy
from tests.helpers.llms import BASE, random_llm

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 3}
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "llama": ({"attention_bias": True, "mlp_bias": True}, "mlp.down_proj.bias"),
    "mistral": ({}, "mlp.up_proj.weight"),
    "qwen2": ({"tie_word_embeddings": False}, "self_attn.v_proj.bias"),
    "qwen3": ({}, "self_attn.k_norm.weight"),
    "mixtral": ({"num_local_experts": 3, "num_experts_per_tok": 2}, "block_sparse_moe.experts.2.w3.weight"),
    "qwen2_moe": ({**EXPERTS, "shared_expert_intermediate_size": 40}, "mlp.shared_expert_gate.weight"),
    "qwen3_moe": (EXPERTS, "mlp.experts.1.down_proj.weight"),
}


def logits(llm: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return llm(torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_folder_is_the_model_it_was_made_of(tmp_path: Path, family: str) -> None:
    change, name = FAMILIES[family]
    original = random_llm(BASE | {"model_type": family} | change)
    original.save_pretrained(tmp_path)  # in the published names: experts apart
    config, tensors = read_llm(tmp_path)
    assert f"model.layers.1.{name}" in tensors
    llm = build_llm(config, None)
    load_base(llm, tensors, tied=config["tie_word_embeddings"])
    torch.testing.assert_close(logits(llm), logits(original), atol=0, rtol=0)
    for key, value in published_parameters(llm).items():
        assert torch.equal(value, tensors[key]()), key


def mixtral() -> tuple[nn.Module, LazyTensors]:
    llm = build_llm(BASE | {"model_type": "mixtral"} | FAMILIES["mixtral"][0], None)
    return llm, lazy({name: value.detach().clone() for name, value in published_parameters(llm).items()})


W2 = "model.layers.0.block_sparse_moe.experts.1.w2.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({W2: None}, rf"1 tensors missing \({W2}\)"),
        ({W2.replace("1.w2", "3.w2"): torch.zeros(64, 96)}, r"1 tensors not known \(.*experts\.3\.w2\.weight\)"),
        ({W2: torch.zeros(96, 64)}, rf"{W2} has shape \[96, 64\], expected \[64, 96\]"),
        ({"model.layers.0.mlp.experts.down_proj": torch.zeros(3, 64, 96)}, r"not known \(.*mlp\.experts\.down_proj"),
    ],
)
def test_experts_are_loaded_strictly(tensors: dict[str, torch.Tensor | None], message: str) -> None:
    llm, stored = mixtral()
    changed = stored | lazy({name: value for name, value in tensors.items() if value is not None})
    for name in [name for name, value in tensors.items() if value is None]:
        del changed[name]
    with pytest.raises(CheckpointError, match=message):
        load_base(llm, changed, tied=True)


@pytest.mark.parametrize("config", [{"model_type": "llama", "vocab_size": "many"}, {"model_type": "no such family"}])
def test_configs_that_transformers_does_not_take(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="transformers cannot build the LLM of this config"):
        llm_config(config)


@pytest.mark.parametrize("positions", [PLAIN_POSITIONS, PLAIN_POSITIONS + 1])
def test_short_passes_are_trained_with_plain_attention_to_the_same_gradients(positions: int) -> None:
    llm = random_llm(BASE | {"max_position_embeddings": PLAIN_POSITIONS + 1})
    embeds = torch.randn(3, positions, BASE["hidden_size"], generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(positions) < torch.tensor([[positions], [positions // 2], [7]])).long()

    def gradient(half: bool) -> tuple[torch.Tensor, set[str]]:
        """Of the embeddings, and the operations it took."""
        trained = embeds.clone().requires_grad_()
        with (
            profile(activities=[ProfilerActivity.CPU]) as trace,
            torch.autocast("cpu", torch.bfloat16, enabled=half),
            training_attention(positions, trained.device),
        ):
            likelihood = llm(inputs_embeds=trained, attention_mask=mask).logits.float().log_softmax(dim=-1)[..., 3]
            (likelihood * mask).sum().backward()
        assert trained.grad is not None
        return trained.grad, {event.key for event in trace.key_averages()}

    (found, operations), (expected, of_float32) = gradient(half=True), gradient(half=False)
    flash = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert (flash in operations) == (positions > PLAIN_POSITIONS)
    assert flash in of_float32
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.999
