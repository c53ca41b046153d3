"""Fusion and Q-Former as a graph, with the exact savings.

- Until layer 0's cross-attention nothing depends on the audio: it is computed here, once.
- A single query attends to itself alone: its self-attention is one linear map.
- Keys are never projected: q . (Wk x + bk) = (Wk^T q) . x + constant, and a constant does not change a softmax.
- Values are projected after the weighted sum, not before: sum p (Wv x + bv) = Wv (sum p x) + bv.
With 1 query over 17 frames the last two leave a seventeenth of the cross-attention's products.
"""

import math

import numpy as np
import torch

from salmonrun.export.graphs.builder import GraphBuilder, WeightFile
from salmonrun.export.graphs.layers import NamedLayers
from salmonrun.export.graphs.linear import F32, Linear, plain_linear, to_numpy
from salmonrun.training.model.config import QFormerConfig
from salmonrun.training.model.qformer import BERT_EPS, BertAttention, QFormer, QFormerLayer
from salmonrun.training.tensors import lazy

LN_EPS = 1e-5


def build_qformer(
    config: QFormerConfig, qformer: QFormer, weights: WeightFile, llm_dim: int, linear: Linear = plain_linear
) -> GraphBuilder:
    """speech [1, S, Ds] and, with an audio encoder, audio [1, A, Da] -> audio_embeds [1, N, llm_dim]."""
    graph = GraphBuilder("qformer", weights)
    named = NamedLayers(graph, lazy(qformer.state_dict()), linear)
    windows = _windows(graph, config, _fuse(graph, named, qformer))  # [L, frames, width]
    x = _first_layer(graph, named, config, qformer, windows)
    for i in range(1, config.layers):
        x = _layer(graph, named, config, qformer.layers[i], f"layers.{i}.", x, windows)  # type: ignore[arg-type]
    embeds = named.wide(named.linear(named.narrow(x), "proj"))
    embeds = graph.op("Reshape", embeds, graph.ints(1, -1, llm_dim))
    graph.output(embeds, "audio_embeds", [1, "audio_embeds", llm_dim])
    return graph


def _fuse(graph: GraphBuilder, named: NamedLayers, qformer: QFormer) -> str:
    speech = graph.input("speech", [1, "frames", qformer.ln_speech.normalized_shape[0]])
    speech = named.narrow(named.norm(speech, "ln_speech", LN_EPS))
    if qformer.ln_audio is None:
        return speech
    audio = graph.input("audio", [1, "audio_tokens", qformer.ln_audio.normalized_shape[0]])
    audio = named.narrow(named.norm(audio, "ln_audio", LN_EPS))
    length = graph.op("Max", graph.dim(speech, 1), graph.dim(audio, 1))
    return graph.op("Concat", *(_pad(graph, x, length) for x in (speech, audio)), axis=2)


def _pad(graph: GraphBuilder, x: str, length: str) -> str:
    """Zeros behind [1, T, D] up to `length`."""
    missing = graph.op("Sub", length, graph.dim(x, 1))
    return graph.op("Pad", x, graph.op("Concat", graph.ints(0, 0, 0, 0), missing, graph.ints(0), axis=0))


def _windows(graph: GraphBuilder, config: QFormerConfig, fused: str) -> str:
    """[1, T, width] -> [L, frames, width]: a reshape where windows adjoin, a gather where they do not."""
    frames, stride = config.window.frames, config.window.stride
    total = graph.dim(fused, 1)
    last_start = graph.op("Sub", total, graph.ints(frames))
    count = graph.op("Add", graph.op("Div", last_start, graph.ints(stride)), graph.ints(1))
    if frames == stride:
        used = graph.op("Slice", fused, graph.ints(0), graph.op("Mul", count, graph.ints(frames)), graph.ints(1))
        shape = graph.op("Concat", count, graph.ints(frames), graph.dim(fused, 2), axis=0)
        return graph.op("Reshape", used, shape)
    starts = graph.op("Range", graph.int_scalar(0), graph.op("Squeeze", count), graph.int_scalar(1))
    starts = graph.op("Mul", graph.op("Unsqueeze", starts, graph.ints(1)), graph.ints(stride))
    index = graph.op("Add", starts, graph.raw_weight("window_frames", np.arange(frames)[None, :]))
    return graph.op("Gather", graph.op("Squeeze", fused, graph.ints(0)), index, axis=0)


def _first_layer(graph: GraphBuilder, named: NamedLayers, config: QFormerConfig, qformer: QFormer, windows: str) -> str:
    layer: QFormerLayer = qformer.layers[0]  # type: ignore[assignment]
    with torch.inference_mode():
        x = qformer.embed_norm(qformer.query_tokens)[None]
        x = layer.self_attn(x, x)[0]  # [queries, dim], a constant
        keys = _absorb_keys(layer.cross_attn, layer.cross_attn.query(x))  # [queries * heads, width]
    scores = graph.op("MatMul", windows, named.factor("layers.0.absorbed_keys", keys.T))  # [L, frames, queries * heads]
    scores = graph.op("Transpose", scores, perm=[0, 2, 1])
    attended = _attend(graph, named, config, "layers.0.cross_attn.", scores, windows)
    residual = graph.weight("layers.0.residual", to_numpy(x)[None])
    return _finish_layer(graph, named, "layers.0.", graph.op("Add", attended, residual))


def _layer(
    graph: GraphBuilder,
    named: NamedLayers,
    config: QFormerConfig,
    layer: QFormerLayer,
    prefix: str,
    x: str,
    windows: str,
) -> str:
    """[L, queries, dim] -> [L, queries, dim]."""
    x = _self_attention(graph, named, config, layer.self_attn, f"{prefix}self_attn.", x)
    heads, head_dim, queries = config.heads, config.dim // config.heads, config.window.num_queries
    q = named.linear(named.narrow(x), f"{prefix}cross_attn.query")
    q = graph.op("Reshape", q, graph.ints(-1, heads, head_dim))  # [L * queries, heads, head_dim]
    keys = named.array(f"{prefix}cross_attn.key.weight").reshape(heads, head_dim, -1) / math.sqrt(head_dim)
    q = graph.op("MatMul", graph.op("Transpose", q, perm=[1, 0, 2]), named.factor(f"{prefix}absorbed_keys", keys))
    q = graph.op("Transpose", q, perm=[1, 0, 2])  # [L * queries, heads, width]
    q = graph.op("Reshape", q, graph.ints(-1, queries * heads, keys.shape[2]))
    scores = graph.op("MatMul", q, graph.op("Transpose", windows, perm=[0, 2, 1]))  # [L, queries * heads, frames]
    attended = _attend(graph, named, config, f"{prefix}cross_attn.", scores, windows)
    return _finish_layer(graph, named, prefix, graph.op("Add", attended, x))


def _absorb_keys(attention: BertAttention, q: torch.Tensor) -> F32:
    """Wk^T q / sqrt(head_dim) for every query and head of q [queries, dim]: [queries * heads, width]."""
    heads = attention.heads
    by_head = q.unflatten(-1, (heads, -1))  # [queries, heads, head_dim]
    keys = attention.key.weight.unflatten(0, (heads, -1))  # [heads, head_dim, width]
    return to_numpy(torch.einsum("qhd,hdw->qhw", by_head, keys).flatten(0, 1) / math.sqrt(by_head.shape[-1]))


def _attend(
    graph: GraphBuilder, named: NamedLayers, config: QFormerConfig, prefix: str, scores: str, windows: str
) -> str:
    """Scores [L, queries * heads, frames] -> output of the cross-attention [L, queries, dim], residual not added."""
    heads, head_dim = config.heads, config.dim // config.heads
    shares = named.narrow(graph.op("Softmax", named.wide(scores), axis=-1))
    weighted = graph.op("MatMul", shares, windows)  # [L, queries * heads, width]
    values = named.array(f"{prefix}value.weight").reshape(heads, head_dim, -1).transpose(0, 2, 1)
    weighted = graph.op("Reshape", weighted, graph.ints(-1, heads, values.shape[1]))
    by_head = graph.op("Transpose", weighted, perm=[1, 0, 2])  # [heads, L * queries, width]
    by_head = graph.op("MatMul", by_head, named.factor(f"{prefix}value.weight", values))
    joined = graph.op("Transpose", by_head, perm=[1, 0, 2])
    joined = graph.op("Reshape", joined, graph.ints(-1, config.window.num_queries, config.dim))
    joined = graph.op("Add", joined, named.factor(f"{prefix}value.bias"))
    return named.wide(named.linear(joined, f"{prefix}out"))


def _self_attention(
    graph: GraphBuilder, named: NamedLayers, config: QFormerConfig, attention: BertAttention, prefix: str, x: str
) -> str:
    """Post-norm self-attention among the queries of one window."""
    if config.window.num_queries == 1:
        with torch.inference_mode():
            weight = to_numpy(attention.out.weight @ attention.value.weight)
            bias = to_numpy(attention.out.weight @ attention.value.bias + attention.out.bias)
        mixed = named.product(named.narrow(x), f"{prefix}value_out", weight, bias)
    else:
        x_narrow = named.narrow(x)
        q, k, v = (_heads(graph, named, config, x_narrow, f"{prefix}{name}") for name in ("query", "key", "value"))
        scale = named.factor(f"{prefix}scale", np.array(1 / math.sqrt(config.dim // config.heads), np.float32))
        scores = graph.op("MatMul", graph.op("Mul", q, scale), graph.op("Transpose", k, perm=[0, 1, 3, 2]))
        mixed = graph.op("MatMul", named.narrow(graph.op("Softmax", named.wide(scores), axis=-1)), v)
        mixed = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = graph.op("Reshape", mixed, graph.ints(-1, config.window.num_queries, config.dim))
        mixed = named.linear(mixed, f"{prefix}out")
    return named.norm(graph.op("Add", x, named.wide(mixed)), f"{prefix}norm", BERT_EPS)


def _heads(graph: GraphBuilder, named: NamedLayers, config: QFormerConfig, x: str, name: str) -> str:
    """Project and split: [L, queries, dim] -> [L, heads, queries, head_dim]."""
    projected = named.linear(x, name)
    shape = graph.ints(-1, config.window.num_queries, config.heads, config.dim // config.heads)
    return graph.op("Transpose", graph.op("Reshape", projected, shape), perm=[0, 2, 1, 3])


def _finish_layer(graph: GraphBuilder, named: NamedLayers, prefix: str, attended: str) -> str:
    """Norm of the cross-attention, then the feed-forward with its own."""
    x = named.norm(attended, f"{prefix}cross_attn.norm", BERT_EPS)
    h = named.linear(graph.op("Gelu", named.linear(named.narrow(x), f"{prefix}fc1")), f"{prefix}fc2")
    return named.norm(graph.op("Add", x, named.wide(h)), f"{prefix}norm", BERT_EPS)
