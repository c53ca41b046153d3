"""Small LLMs of random weights in transformers and in our decoders, side by side."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from salmonrun.export.graphs.builder import WeightFile
from salmonrun.export.graphs.llm import build_llm_graph
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.options import LlmPrecision
from salmonrun.export.weights.native import native_weights, write_native
from salmonrun.export.weights.pytorch import torch_weights, write_torch
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.decoder import Lease, prefill, step, verify
from salmonrun.runtime.decoders import choose
from salmonrun.runtime.manifest import (
    EmbeddingSpec,
    LlmSpec,
    LlmWeights,
    OnnxWeights,
)
from salmonrun.training.model.llm import build_llm, published_parameters
from salmonrun.training.tensors import lazy
from tests.helpers.bundles import bundle_of

MAX_LENGTH = 128
BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 70,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
WINDOW = 8
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
# Every family that export supports, in the variants that change its layers; BASE has the rest of their configs.
LLMS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "llama 3": {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": WINDOW, "head_dim": 32, "tie_word_embeddings": False},
    "mistral without a window": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2", **SLIDING, "use_sliding_window": False, "tie_word_embeddings": False},
    "qwen2 sliding, tied": {"model_type": "qwen2", **SLIDING},
    "qwen2 yarn": {"model_type": "qwen2", "rope_scaling": YARN},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "num_hidden_layers": 3},
    "qwen3 sliding, biases, untied": {
        "model_type": "qwen3",
        "attention_bias": True,
        "tie_word_embeddings": False,
        **SLIDING,
    },
    "mixtral": {
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "tie_word_embeddings": False,
    },
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        **EXPERTS,
        "num_experts": 5,
        "shared_expert_intermediate_size": 40,
        "num_hidden_layers": 3,
        "mlp_only_layers": [1],
        **SLIDING,
    },
    "qwen3_moe": {"model_type": "qwen3_moe", **EXPERTS, "num_experts": 6, "norm_topk_prob": True, "head_dim": 32},
    "qwen3_moe sliding": {"model_type": "qwen3_moe", **EXPERTS, "num_experts": 6, **SLIDING},
}


def random_llm(config: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """Logits with a spread of about 2, as in salmonrun.training.starting.init."""
    llm = build_llm(config, None)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if name.endswith("embed_tokens.weight"):
                parameter.normal_(std=2 / parameter.shape[1] ** 0.5)
            elif parameter.ndim >= 2:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5)
            else:
                parameter.uniform_(0.5, 1.5)
    return llm


def write_llm(llm: PreTrainedModel, config: dict[str, Any], folder: Path) -> Bundle:
    """A bundle of nothing but an LLM, as export writes it."""
    shape, tensors = LlmShape.from_config(config), lazy(published_parameters(llm))
    with WeightFile(folder / "decoder.onnx.data") as weights:
        graph = build_llm_graph(shape, tensors, weights, "fp32", MAX_LENGTH)
    graph.save(folder / "decoder.onnx")
    weights_of = LlmWeights(OnnxWeights("float32", "fp32", "fp32"))
    return bundle_of(folder, _spec(llm, shape, folder, weights_of), {"llm": graph.spec("decoder.onnx")})


def write_native_llm(llm: PreTrainedModel, config: dict[str, Any], folder: Path, precision: LlmPrecision) -> Bundle:
    """The same with weights for the native decoder alone."""
    shape, tensors = LlmShape.from_config(config), lazy(published_parameters(llm))
    weights = replace(native_weights(precision), file="native.bin")
    write_native(folder / "native.bin", shape, tensors, weights, MAX_LENGTH)
    return bundle_of(folder, _spec(llm, shape, folder, LlmWeights(None, weights)), {})


def write_torch_llm(
    llm: PreTrainedModel, config: dict[str, Any], folder: Path, precision: LlmPrecision, int8: tuple[str, ...] = ()
) -> Bundle:
    """The same with weights for the torch decoder alone, on a CPU."""
    shape, tensors = LlmShape.from_config(config), lazy(published_parameters(llm))
    weights = replace(torch_weights(precision, "cpu", torch.float32, int8=int8), file="torch.bin")
    write_torch(folder / "torch.bin", shape, tensors, weights, MAX_LENGTH)
    return bundle_of(folder, _spec(llm, shape, folder, LlmWeights(None, torch=weights)), {})


def _spec(llm: PreTrainedModel, shape: LlmShape, folder: Path, weights: LlmWeights) -> LlmSpec:
    llm.get_input_embeddings().weight.detach().numpy().tofile(folder / "embed_tokens.bin")
    return LlmSpec(
        vocab_size=shape.vocab_size,
        dim=shape.dim,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        eps=shape.eps,
        windows=shape.windows,
        experts=shape.experts,
        max_length=MAX_LENGTH,
        weights=weights,
        embedding=EmbeddingSpec("embed_tokens.bin", "float32", shape.vocab_size, shape.dim),
    )


@cache
def _shared_llm(config: str) -> PreTrainedModel:
    return random_llm(json.loads(config))


class Pair:
    """The same LLM in transformers and in one of our decoders, in float32."""

    def __init__(self, config: dict[str, Any], folder: Path, runs: Literal["onnx", "torch"] = "onnx") -> None:
        self.llm = _shared_llm(json.dumps(config))
        if runs == "onnx":
            self.bundle = write_llm(self.llm, config, folder)
        else:
            self.bundle = write_torch_llm(self.llm, config, folder, "fp32")
        self.decoder: Any = choose(self.bundle, runs, "cpu", 2 if runs == "onnx" else 1)

    def open(self, count: int, capacity: int = 64) -> Lease[Any]:
        return self.decoder.open(count, capacity)

    def expected(self, token_ids: Sequence[int]) -> F32:
        """transformers' logits after each token [S, V], without a cache."""
        with torch.no_grad():
            return self.llm(torch.tensor([list(token_ids)]), use_cache=False).logits[0].numpy()

    def prefill(self, slot: Any, token_ids: Sequence[int]) -> F32:
        return prefill(self.decoder, slot, self.decoder.embed(token_ids))

    def step(self, slots: Sequence[Any], token_ids: Sequence[int]) -> F32:
        return step(self.decoder, slots, token_ids)

    def verify(self, slot: Any, token_ids: Sequence[int]) -> F32:
        return verify(self.decoder, slot, token_ids)

    def greedy(self, slot: Any, logits: F32, count: int) -> list[int]:
        tokens = [int(np.argmax(logits))]
        while len(tokens) < count:
            tokens.append(int(np.argmax(self.step([slot], tokens[-1:])[0])))
        return tokens


def tokens_of(seed: int, count: int, below: int = 50) -> list[int]:
    return np.random.default_rng(seed).integers(0, below, count).tolist()


def assert_close(found: F32, expected: F32) -> None:
    """Within 1e-4, for logits of order one."""
    assert found.shape == expected.shape
    scale = max(1.0, float(np.sqrt(np.mean(np.square(expected)))))
    assert np.abs(found - expected).max() <= 1e-4 * scale
