"""BEATs as a graph, with the exact savings: folded gate, folded residual weight, one bias table by distance."""

import numpy as np
import torch

from salmonrun.export.graphs.builder import END, MICROSOFT, GraphBuilder, WeightFile, with_past
from salmonrun.export.graphs.layers import NamedLayers
from salmonrun.export.graphs.linear import F32, Linear
from salmonrun.training.model.encoders.beats import BeatsConfig, deepnorm_alpha, relative_buckets
from salmonrun.training.tensors import LazyTensors

EPS = 1e-5


def build_beats(
    config: BeatsConfig,
    tensors: LazyTensors,
    weights: WeightFile,
    linear: Linear,
    max_frames: int,
    blocks: bool = False,
) -> GraphBuilder:
    """See BUILDERS; with a front end of 128 bins and patches of 16 x 16, audio is [1, 8 * (F // 16), dim].

    With `blocks` the F frames come behind others: past_conv [1, conv_pos // 2, dim] is what the convolution heard last
    (zeros at the beginning), past_key.N and past_value.N [1, P, dim] are what layer N sees of the past; present_...
    are the same with the new ones added.
    """
    graph = GraphBuilder("audio_encoder", weights)

    encoder = NamedLayers(graph, tensors, linear)
    fbank = graph.input("fbank", [1, "fbank_frames", config.fbank.bins])
    patch = config.patch_size
    x = graph.op("Unsqueeze", encoder.narrow(fbank), graph.ints(1))
    x = graph.op("Conv", x, encoder.factor("patch_embedding.weight"), strides=[patch, patch])  # [1, patch_dim, T, 8]
    x = graph.op("Reshape", x, graph.ints(1, config.patch_dim, -1))
    x = encoder.wide(graph.op("Transpose", x, perm=[0, 2, 1]))
    x = encoder.norm(x, "layer_norm", EPS)  # tokens: time-major, 8 bands each
    x = encoder.wide(encoder.linear(encoder.narrow(x), "post_extract_proj"))
    conv = _position_conv(graph, encoder, x, config, blocks)
    x = encoder.norm(graph.op("Add", x, conv), "encoder.layer_norm", EPS)
    longest = longest_positions(config, max_frames)
    bias = _position_bias(graph, encoder, x, graph.dim("past_key.0", 1) if blocks else None, config, longest)
    alpha = residual_weight(config)
    for i in range(config.layers):
        prefix = f"encoder.layers.{i}."
        attended = encoder.wide(_attention(graph, encoder, x, i, config, bias, alpha, blocks))
        x = encoder.norm(graph.op("Add", x, attended), f"{prefix}self_attn_layer_norm", EPS / alpha**2)
        h = graph.op("Gelu", encoder.linear(encoder.narrow(x), f"{prefix}fc1"))
        h = encoder.wide(encoder.linear(h, f"{prefix}fc2", factor=1 / alpha))
        x = encoder.norm(graph.op("Add", x, h), f"{prefix}final_layer_norm", EPS / alpha**2)
    graph.output(x, "audio", [1, "audio_tokens", config.dim])
    return graph


def residual_weight(config: BeatsConfig) -> float:
    """DeepNorm's alpha, by which a branch's weights and bias are divided, and by its square the epsilon of its norm.

    LN(alpha x + f) with epsilon e equals LN(x + f / alpha) with e / alpha^2.
    """
    return deepnorm_alpha(config.deepnorm_layers or config.layers)


def longest_positions(config: BeatsConfig, max_frames: int) -> int:
    """States that so many frames of the filter bank yield."""
    return config.fbank.bins // config.patch_size * (max_frames // config.patch_size)


def bias_by_distance(table: F32, config: BeatsConfig, longest: int) -> F32:
    """The position bias [heads, 2 * longest - 1] of key - query, 0 in the middle, from the table [buckets, heads]."""
    distances = torch.arange(-(longest - 1), longest)
    bias: F32 = np.ascontiguousarray(table[relative_buckets(distances, config).numpy()].T)
    return bias


def folded_gate(weight: F32, bias: F32) -> tuple[F32, F32]:
    """[2, head_dim] and [2] of the published [8, head_dim] and [8]: it sums groups of 4 outputs."""
    return weight.reshape(2, 4, -1).sum(axis=1), bias.reshape(2, 4).sum(axis=1)


def _position_conv(graph: GraphBuilder, encoder: NamedLayers, x: str, config: BeatsConfig, blocks: bool) -> str:
    """The grouped convolution; an even kernel pads one step less on the right: the step that published code drops."""
    half = config.conv_pos // 2
    if blocks:
        x = graph.op("Concat", graph.input("past_conv", [1, half, config.dim]), x, axis=1)
        last = graph.op("Slice", x, graph.ints(-half), graph.ints(END), graph.ints(1))
        graph.output(last, "present_conv", [1, half, config.dim])
    conv = graph.op(
        "Conv",
        encoder.narrow(graph.op("Transpose", x, perm=[0, 2, 1])),
        encoder.factor("encoder.pos_conv.weight"),
        encoder.factor("encoder.pos_conv.bias"),
        group=config.conv_pos_groups,
        pads=[0 if blocks else half, half - 1 + config.conv_pos % 2],
    )
    return encoder.wide(graph.op("Transpose", graph.op("Gelu", conv), perm=[0, 2, 1]))


def _position_bias(
    graph: GraphBuilder, encoder: NamedLayers, x: str, past: str | None, config: BeatsConfig, longest: int
) -> str:
    """[heads, T, P + T] gathered from [heads, 2 * longest - 1]: the bias depends on key - query only."""
    table = encoder.array("encoder.relative_attention_bias.weight")
    by_distance = graph.weight("bias_by_distance", bias_by_distance(table, config, longest))
    length = graph.op("Squeeze", graph.dim(x, 1))
    first = graph.int_scalar(0) if past is None else graph.op("Squeeze", past)
    end = length if past is None else graph.op("Add", first, length)
    queries = graph.op("Range", first, end, graph.int_scalar(1))
    keys = queries if past is None else graph.op("Range", graph.int_scalar(0), end, graph.int_scalar(1))
    keys = graph.op("Add", graph.op("Unsqueeze", keys, graph.ints(0)), graph.int_scalar(longest - 1))
    index = graph.op("Sub", keys, graph.op("Unsqueeze", queries, graph.ints(1)))
    return graph.op("Gather", by_distance, index, axis=1)


def _attention(
    graph: GraphBuilder,
    encoder: NamedLayers,
    x: str,
    layer: int,
    config: BeatsConfig,
    bias: str,
    alpha: float,
    blocks: bool,
) -> str:
    """In float32, but for products with matrices: in 16 bits the published code has to scale these scores down."""
    prefix = f"encoder.layers.{layer}.self_attn."
    qkv = encoder.linear(encoder.narrow(x), f"{prefix}qkv_proj", *(f"{prefix}{p}_proj" for p in "qkv"))
    q, k, v = graph.op_n(3, "Split", encoder.wide(qkv), axis=2, num_outputs=3)
    gated = graph.op("Mul", _gate(graph, encoder, q, prefix, config), bias)  # [1, heads, T, P + T]
    if blocks:
        k, v = with_past(graph, layer, config.dim, k, v)
    attended = graph.op("MultiHeadAttention", q, k, v, "", "", gated, domain=MICROSOFT, num_heads=config.heads)
    return encoder.linear(encoder.narrow(attended), f"{prefix}out_proj", factor=1 / alpha)


def _gate(graph: GraphBuilder, encoder: NamedLayers, q: str, prefix: str, config: BeatsConfig) -> str:
    """[1, heads, T, 1] from the queries [1, T, dim]."""
    folded, folded_bias = folded_gate(*(encoder.array(f"{prefix}grep_linear.{part}") for part in ("weight", "bias")))
    by_head = graph.op("Reshape", q, graph.ints(1, -1, config.heads, config.dim // config.heads))
    gates = graph.op("MatMul", by_head, graph.weight(f"{prefix}gate.weight", folded.T))
    gates = graph.op("Sigmoid", graph.op("Add", gates, graph.weight(f"{prefix}gate.bias", folded_bias)))
    a, b = graph.op_n(2, "Split", graph.op("Transpose", gates, perm=[0, 2, 1, 3]), axis=3, num_outputs=2)
    scaled = graph.op("Mul", b, encoder.weight(f"{prefix}grep_a"))
    one, two = (graph.weight(f"float_{value}", np.array(value, np.float32)) for value in (1, 2))
    return graph.op("Add", graph.op("Mul", a, graph.op("Sub", scaled, one)), two)
