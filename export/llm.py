"""The LLM as one graph for prefill, step and verify, built node by node from its tensors."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from export.graph import FLOAT, INT32, INT64, MICROSOFT, GraphBuilder, WeightFile
from export.quantize import F32, LLM_LINEARS, LM_HEAD_LINEARS, LlmPrecision, to_numpy
from export.rope import rope_tables
from runtime.errors import ConfigError
from training.llm import EMBEDDING, LM_HEAD
from training.tensors import LazyTensors


@dataclass(frozen=True)
class LlmShape:
    """What of a transformers config the graph needs."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    eps: float
    tied: bool

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LlmShape":
        """Read a Llama-family config.

        Raises:
            ConfigError: another family, or a variant the graph does not have.
        """
        if config["model_type"] != "llama":
            raise ConfigError(f"LLM family {config['model_type']!r} cannot be exported yet; supported: llama")
        for key, expected in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
            if config.get(key, expected) != expected:
                raise ConfigError(f"llm.{key} is {config[key]!r}; only {expected!r} is supported")
        heads = int(config["num_attention_heads"])
        shape = cls(
            layers=int(config["num_hidden_layers"]),
            dim=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocab_size=int(config["vocab_size"]),
            eps=float(config.get("rms_norm_eps", 1e-6)),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
        if shape.head_dim % 16:
            raise ConfigError(f"head_dim is {shape.head_dim}; the attention kernel needs a multiple of 16")
        return shape


def build_llm_graph(
    config: dict[str, Any],
    tensors: LazyTensors,
    weights: WeightFile,
    precision: LlmPrecision,
    max_length: int,
    dtype: int = FLOAT,
) -> GraphBuilder:
    """inputs_embeds and KV buffers in, logits of the positions asked for and the same buffers out.

    B sequences of S new positions each; `seqlens_k` [B] is each sequence's length, the new positions included, minus 1.
    """
    shape = LlmShape.from_config(config)
    graph = GraphBuilder("llm", weights, dtype)
    linear = LLM_LINEARS[precision]
    hidden = graph.input("inputs_embeds", ["batch", "positions", shape.dim])
    lengths = graph.input("seqlens_k", ["batch"], INT32)
    total = graph.input("total_sequence_length", [], INT32)
    wanted = graph.input("logit_positions", ["logits"], INT64)
    cos, sin = (
        graph.weight(name, table)
        for name, table in zip(("cos", "sin"), rope_tables(config, shape.head_dim, max_length), strict=True)
    )

    def matrix(name: str) -> F32:
        return to_numpy(tensors[name]())

    residual = ""
    x = hidden
    for i in range(shape.layers):
        prefix = f"model.layers.{i}."
        x, residual = _norm(graph, x, residual, f"{prefix}input_layernorm", tensors, shape.eps)
        qkv = np.concatenate([matrix(f"{prefix}self_attn.{p}_proj.weight") for p in "qkv"])
        x = linear(graph, x, f"{prefix}self_attn.qkv_proj", qkv, None)
        x = _attention(graph, x, i, shape, (lengths, total, cos, sin))
        x = linear(graph, x, f"{prefix}self_attn.o_proj", matrix(f"{prefix}self_attn.o_proj.weight"), None)
        x, residual = _norm(graph, x, residual, f"{prefix}post_attention_layernorm", tensors, shape.eps)
        gate = linear(graph, x, f"{prefix}mlp.gate_proj", matrix(f"{prefix}mlp.gate_proj.weight"), None)
        up = linear(graph, x, f"{prefix}mlp.up_proj", matrix(f"{prefix}mlp.up_proj.weight"), None)
        silu = graph.op("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(x)
        x = graph.op("Mul", silu, up)
        x = linear(graph, x, f"{prefix}mlp.down_proj", matrix(f"{prefix}mlp.down_proj.weight"), None)
    x, _ = _norm(graph, x, residual, "model.norm", tensors, shape.eps)
    x = graph.op("Gather", x, wanted, axis=1)
    head = matrix(EMBEDDING if shape.tied else LM_HEAD)
    logits = LM_HEAD_LINEARS[precision](graph, x, "lm_head", head, None)
    if dtype != FLOAT:
        logits = graph.op("Cast", logits, to=FLOAT)
    graph.output(logits, "logits", ["batch", "logits", shape.vocab_size], FLOAT)
    return graph


def _norm(graph: GraphBuilder, x: str, residual: str, name: str, tensors: LazyTensors, eps: float) -> tuple[str, str]:
    """RMS norm of x + residual, and that sum; the first layer has no residual yet."""
    scale = graph.weight(f"{name}.weight", to_numpy(tensors[f"{name}.weight"]()))
    if not residual:
        return graph.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=eps, stash_type=1), x
    names = [f"{name}.out", "", "", f"{name}.sum"]
    normed, _, _, total = graph.named_op(
        names, "SkipSimplifiedLayerNormalization", x, residual, scale, domain=MICROSOFT, epsilon=eps
    )
    return normed, total


def _attention(graph: GraphBuilder, qkv: str, layer: int, shape: LlmShape, shared: tuple[str, str, str, str]) -> str:
    """Fused rotary attention that appends to the layer's KV buffers in place."""
    lengths, total, cos, sin = shared
    cache: list[int | str] = ["batch", shape.kv_heads, "capacity", shape.head_dim]
    past = [graph.input(f"past_{kind}.{layer}", cache) for kind in ("key", "value")]
    present = [f"present_{kind}.{layer}" for kind in ("key", "value")]
    output, *_ = graph.named_op(
        [f"attention.{layer}", *present],
        "GroupQueryAttention",
        *(qkv, "", "", *past, lengths, total, cos, sin),
        domain=MICROSOFT,
        num_heads=shape.heads,
        kv_num_heads=shape.kv_heads,
        do_rotary=1,
        rotary_interleaved=0,
    )
    for name in present:
        graph.direct_output(name, cache)
    return output
