"""Whisper's encoder as a graph: of a whole recording, or of a block that follows others."""

import numpy as np

from salmonrun.export.graphs.builder import END, INT64, MICROSOFT, GraphBuilder, WeightFile, with_past
from salmonrun.export.graphs.linear import Linear, to_numpy
from salmonrun.training.model.config import WhisperConfig
from salmonrun.training.tensors import LazyTensors

EPS = 1e-5


def build_whisper(
    config: WhisperConfig, tensors: LazyTensors, weights: WeightFile, linear: Linear, blocks: bool = False
) -> GraphBuilder:
    """log_mel [1, n_mels, 2 T] -> speech [1, T, d_model], any T up to the position table.

    With `blocks` the T frames come behind `start` others. log_mel [1, n_mels, 2 T + 2] then has the hop before and the
    hop after them (zeros where there is none), past_conv is the first convolution's last step, past_key.N and
    past_value.N [1, P, d_model] are what layer N sees of the past; present_... are the same with the T frames added.
    """
    graph = GraphBuilder("whisper", weights)

    def w(name: str) -> str:
        return graph.weight(name, to_numpy(tensors[name]()))

    def norm(x: str, name: str) -> str:
        return graph.op("LayerNormalization", x, w(f"{name}.weight"), w(f"{name}.bias"), epsilon=EPS)

    padding = [0, 0] if blocks else [1, 1]
    x = graph.input("log_mel", [1, config.n_mels, "mel_frames"])
    x = graph.op("Gelu", graph.op("Conv", x, w("conv1.weight"), w("conv1.bias"), pads=padding))
    if blocks:
        x = graph.op("Concat", graph.input("past_conv", [1, config.d_model, 1]), x, axis=2)
        last = graph.op("Slice", x, graph.ints(-1), graph.ints(END), graph.ints(2))
        graph.output(last, "present_conv", [1, config.d_model, 1])
    x = graph.op("Gelu", graph.op("Conv", x, w("conv2.weight"), w("conv2.bias"), pads=padding, strides=[2]))
    x = graph.op("Transpose", x, perm=[0, 2, 1])
    start = graph.input("start", [1], INT64) if blocks else graph.ints(0)
    end = graph.op("Add", start, graph.dim(x, 1))
    x = graph.op("Add", x, graph.op("Slice", w("embed_positions.weight"), start, end, graph.ints(0)))
    for i in range(config.layers):
        prefix = f"layers.{i}."
        h = norm(x, f"{prefix}self_attn_layer_norm")
        x = graph.op("Add", x, _attention(graph, h, i, config, tensors, linear, blocks))
        h = norm(x, f"{prefix}final_layer_norm")
        h = graph.op("Gelu", _linear(graph, h, f"{prefix}fc1", tensors, linear))
        x = graph.op("Add", x, _linear(graph, h, f"{prefix}fc2", tensors, linear))
    graph.output(norm(x, "layer_norm"), "speech", [1, "frames", config.d_model])
    return graph


def _attention(
    graph: GraphBuilder, x: str, layer: int, config: WhisperConfig, tensors: LazyTensors, linear: Linear, blocks: bool
) -> str:
    """The three projections as one product, then fused attention."""
    prefix = f"layers.{layer}.self_attn."
    weight = np.concatenate([to_numpy(tensors[f"{prefix}{p}_proj.weight"]()) for p in "qkv"])
    bias = np.concatenate(
        [
            to_numpy(tensors[f"{prefix}q_proj.bias"]()),
            np.zeros(config.d_model, np.float32),  # Whisper's keys have no bias
            to_numpy(tensors[f"{prefix}v_proj.bias"]()),
        ]
    )
    qkv = linear(graph, x, f"{prefix}qkv_proj", weight, bias)
    q, k, v = graph.op_n(3, "Split", qkv, axis=2, num_outputs=3)
    if blocks:
        k, v = with_past(graph, layer, config.d_model, k, v)
    attended = graph.op("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=config.heads)
    return _linear(graph, attended, f"{prefix}out_proj", tensors, linear)


def _linear(graph: GraphBuilder, x: str, name: str, tensors: LazyTensors, linear: Linear) -> str:
    return linear(graph, x, name, to_numpy(tensors[f"{name}.weight"]()), to_numpy(tensors[f"{name}.bias"]()))
