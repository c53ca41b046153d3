"""Whisper's encoder as a graph: of a whole recording, or of a block that follows others."""

from salmonrun.export.graphs.builder import END, INT64, MICROSOFT, GraphBuilder, WeightFile, with_past
from salmonrun.export.graphs.layers import NamedLayers
from salmonrun.export.graphs.linear import Linear
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
    layers = NamedLayers(graph, tensors, linear)
    w = layers.factor
    padding = [0, 0] if blocks else [1, 1]
    x = layers.narrow(graph.input("log_mel", [1, config.n_mels, "mel_frames"]))
    x = graph.op("Gelu", graph.op("Conv", x, w("conv1.weight"), w("conv1.bias"), pads=padding))
    if blocks:
        x = graph.op("Concat", layers.narrow(graph.input("past_conv", [1, config.d_model, 1])), x, axis=2)
        last = graph.op("Slice", x, graph.ints(-1), graph.ints(END), graph.ints(2))
        graph.output(layers.wide(last), "present_conv", [1, config.d_model, 1])
    x = graph.op("Gelu", graph.op("Conv", x, w("conv2.weight"), w("conv2.bias"), pads=padding, strides=[2]))
    x = layers.wide(graph.op("Transpose", x, perm=[0, 2, 1]))
    start = graph.input("start", [1], INT64) if blocks else graph.ints(0)
    end = graph.op("Add", start, graph.dim(x, 1))
    x = graph.op("Add", x, graph.op("Slice", layers.weight("embed_positions.weight"), start, end, graph.ints(0)))
    for i in range(config.layers):
        prefix = f"layers.{i}."
        h = layers.narrow(layers.norm(x, f"{prefix}self_attn_layer_norm", EPS))
        x = graph.op("Add", x, layers.wide(_attention(graph, layers, h, i, config, blocks)))
        h = layers.narrow(layers.norm(x, f"{prefix}final_layer_norm", EPS))
        h = graph.op("Gelu", layers.linear(h, f"{prefix}fc1"))
        x = graph.op("Add", x, layers.wide(layers.linear(h, f"{prefix}fc2")))
    graph.output(layers.norm(x, "layer_norm", EPS), "speech", [1, "frames", config.d_model])
    return graph


def _attention(
    graph: GraphBuilder, layers: NamedLayers, x: str, layer: int, config: WhisperConfig, blocks: bool
) -> str:
    """The three projections as one product, then fused attention. Whisper's keys have no bias."""
    prefix = f"layers.{layer}.self_attn."
    qkv = layers.linear(x, f"{prefix}qkv_proj", *(f"{prefix}{p}_proj" for p in "qkv"))
    q, k, v = graph.op_n(3, "Split", qkv, axis=2, num_outputs=3)
    if blocks:
        k, v = map(layers.narrow, with_past(graph, layer, config.d_model, layers.wide(k), layers.wide(v)))
    attended = graph.op("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=config.heads)
    return layers.linear(attended, f"{prefix}out_proj")
