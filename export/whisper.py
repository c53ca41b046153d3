"""Whisper's encoder as a graph."""

import numpy as np

from export.graph import MICROSOFT, GraphBuilder, WeightFile
from export.quantize import Linear, to_numpy
from training.config import WhisperConfig
from training.tensors import LazyTensors

EPS = 1e-5


def build_whisper(config: WhisperConfig, tensors: LazyTensors, weights: WeightFile, linear: Linear) -> GraphBuilder:
    """log_mel [1, n_mels, 2 T] -> speech [1, T, d_model], any T up to the position table."""
    graph = GraphBuilder("whisper", weights)

    def w(name: str) -> str:
        return graph.weight(name, to_numpy(tensors[name]()))

    def norm(x: str, name: str) -> str:
        return graph.op("LayerNormalization", x, w(f"{name}.weight"), w(f"{name}.bias"), epsilon=EPS)

    x = graph.input("log_mel", [1, config.n_mels, "mel_frames"])
    for conv, stride in (("conv1", 1), ("conv2", 2)):
        x = graph.op("Conv", x, w(f"{conv}.weight"), w(f"{conv}.bias"), pads=[1, 1], strides=[stride])
        x = graph.op("Gelu", x)
    x = graph.op("Transpose", x, perm=[0, 2, 1])
    positions = graph.op("Slice", w("embed_positions.weight"), graph.ints(0), graph.dim(x, 1), graph.ints(0))
    x = graph.op("Add", x, positions)
    for i in range(config.layers):
        prefix = f"layers.{i}."
        h = norm(x, f"{prefix}self_attn_layer_norm")
        x = graph.op("Add", x, _attention(graph, h, f"{prefix}self_attn.", config, tensors, linear))
        h = norm(x, f"{prefix}final_layer_norm")
        h = graph.op("Gelu", _linear(graph, h, f"{prefix}fc1", tensors, linear))
        x = graph.op("Add", x, _linear(graph, h, f"{prefix}fc2", tensors, linear))
    graph.output(norm(x, "layer_norm"), "speech", [1, "frames", config.d_model])
    return graph


def _attention(
    graph: GraphBuilder, x: str, prefix: str, config: WhisperConfig, tensors: LazyTensors, linear: Linear
) -> str:
    """The three projections as one product, then fused attention."""
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
    attended = graph.op("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=config.heads)
    return _linear(graph, attended, f"{prefix}out_proj", tensors, linear)


def _linear(graph: GraphBuilder, x: str, name: str, tensors: LazyTensors, linear: Linear) -> str:
    return linear(graph, x, name, to_numpy(tensors[f"{name}.weight"]()), to_numpy(tensors[f"{name}.bias"]()))
