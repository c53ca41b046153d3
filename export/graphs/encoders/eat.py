"""EAT as a graph."""

from salmonrun.export.graphs.builder import END, MICROSOFT, GraphBuilder, WeightFile
from salmonrun.export.graphs.layers import NamedLayers
from salmonrun.export.graphs.linear import Linear
from salmonrun.training.model.encoders.eat import EPS, EatConfig
from salmonrun.training.tensors import LazyTensors


def build_eat(
    config: EatConfig,
    tensors: LazyTensors,
    weights: WeightFile,
    linear: Linear,
    max_frames: int,
    blocks: bool = False,
) -> GraphBuilder:
    """See BUILDERS; with a front end of 128 bins and patches of 16 x 16, audio is [1, 8 * (F // 16), dim]."""
    assert not blocks, "EAT cannot hear in blocks; ModelConfig refuses it"
    graph = GraphBuilder("audio_encoder", weights)

    encoder = NamedLayers(graph, tensors, linear)
    fbank = graph.input("fbank", [1, "fbank_frames", config.fbank.bins])
    patches = graph.op(
        "Conv",
        graph.op("Unsqueeze", encoder.narrow(fbank), graph.ints(1)),
        encoder.factor("patch_embedding.weight"),
        encoder.factor("patch_embedding.bias"),
        strides=[config.patch_size] * 2,
    )  # [1, dim, T, 8]
    x = encoder.wide(graph.op("Reshape", patches, graph.ints(1, config.dim, -1)))
    x = graph.op("Transpose", x, perm=[0, 2, 1])
    table = graph.weight("positions", encoder.array("positions")[:, : longest_positions(config, max_frames)])
    x = graph.op("Add", x, graph.op("Slice", table, graph.ints(0), graph.dim(x, 1), graph.ints(1)))
    x = encoder.norm(graph.op("Concat", encoder.weight("cls_token"), x, axis=1), "pre_norm", EPS)
    for i in range(config.layers):
        qkv = encoder.linear(encoder.narrow(x), f"blocks.{i}.attn.qkv")
        q, k, v = graph.op_n(3, "Split", qkv, axis=2, num_outputs=3)
        attended = graph.op("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=config.heads)
        attended = encoder.wide(encoder.linear(attended, f"blocks.{i}.attn.proj"))
        x = encoder.norm(graph.op("Add", x, attended), f"blocks.{i}.norm1", EPS)
        h = graph.op("Gelu", encoder.linear(encoder.narrow(x), f"blocks.{i}.mlp.fc1"))
        h = encoder.wide(encoder.linear(h, f"blocks.{i}.mlp.fc2"))
        x = encoder.norm(graph.op("Add", x, h), f"blocks.{i}.norm2", EPS)
    frames = graph.op("Slice", x, graph.ints(1), graph.ints(END), graph.ints(1))  # without the CLS token
    graph.output(frames, "audio", [1, "audio_tokens", config.dim])
    return graph


def longest_positions(config: EatConfig, max_frames: int) -> int:
    """States that so many frames of the filter bank yield, the last patch filled up, as far as there are positions."""
    return min(-(-max_frames // config.patch_size), config.max_patches) * config.fbank.patch_tokens
