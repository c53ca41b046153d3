"""The LLM as one graph for prefill, step and verify, built node by node from its tensors."""

import re
from collections.abc import Collection

from salmonrun.export.graphs.builder import FLOAT, INT32, INT64, MICROSOFT, GraphBuilder, WeightFile
from salmonrun.export.graphs.layers import NamedLayers
from salmonrun.export.graphs.linear import BLOCK, LM_HEAD_LINEARS, Linear, Stacked, llm_linear, plain_linear
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.graphs.moe import mixture
from salmonrun.export.graphs.rope import rope_tables
from salmonrun.export.options import LlmPrecision
from salmonrun.training.model.experts import EXPERTS
from salmonrun.training.model.llm import EMBEDDING, LM_HEAD
from salmonrun.training.tensors import LazyTensors

LAST_NORM = "model.norm"


def build_llm_graph(
    shape: LlmShape,
    tensors: LazyTensors,
    weights: WeightFile,
    precision: LlmPrecision,
    max_length: int,
    dtype: int = FLOAT,
    block: int = BLOCK,
    int8: Collection[str] = (),
) -> GraphBuilder:
    """inputs_embeds and KV buffers in, logits of the positions asked for and the same buffers out.

    B sequences of S new positions each; `seqlens_k` [B] is each sequence's length, the new positions included, minus 1.
    The tensors must be those of transformers' model: what is there is built. In its layers, `block` inputs share a
    scale; the matrices `int8` have 8 bits where the others have 4.
    """
    graph = GraphBuilder("llm", weights, dtype)
    x = graph.input("inputs_embeds", ["batch", "positions", shape.dim])
    layers = _Layers(graph, shape, tensors, llm_linear(precision, block, _products(int8)), max_length)
    wanted = graph.input("logit_positions", ["logits"], INT64)
    residual = ""
    for i in range(shape.layers):
        x, residual = layers.add(i, x, residual)
    x, _ = layers.norm(x, residual, LAST_NORM)
    x = graph.op("Gather", x, wanted, axis=1)
    head = Stacked([tensors[EMBEDDING if shape.tied else LM_HEAD]()])
    logits = LM_HEAD_LINEARS[precision](graph, x, "lm_head", head, None)
    if dtype != FLOAT:
        logits = graph.op("Cast", logits, to=FLOAT)
    graph.output(logits, "logits", ["batch", "logits", shape.vocab_size], FLOAT)
    return graph


def _products(matrices: Collection[str]) -> frozenset[str]:
    """What the graph calls the products with these matrices: q, k and v are one."""
    return frozenset(re.sub(r"\.[qkv]_proj$", ".qkv_proj", name) for name in matrices)


def layer_start(layer: int, layers: int) -> str:
    """The value that the first node of a layer gives, and behind the last layer that of the rest of the graph."""
    return f"model.layers.{layer}.input_layernorm.out" if layer < layers else f"{LAST_NORM}.out"


class _Layers:
    """Adds decoder layers to a graph."""

    def __init__(
        self, graph: GraphBuilder, shape: LlmShape, tensors: LazyTensors, linear: Linear, max_length: int
    ) -> None:
        self._graph = graph
        self._shape = shape
        self._named = NamedLayers(graph, tensors, linear)
        lengths = graph.input("seqlens_k", ["batch"], INT32)
        total = graph.input("total_sequence_length", [], INT32)
        cos, sin = rope_tables(shape.config, shape.head_dim, max_length)
        self._places = (lengths, total, graph.weight("cos", cos), graph.weight("sin", sin))

    def add(self, layer: int, x: str, residual: str) -> tuple[str, str]:
        """One layer: its feed-forward output, and the residual that has yet to be added to it."""
        prefix = f"model.layers.{layer}."
        x, residual = self.norm(x, residual, f"{prefix}input_layernorm")
        x = self._attention(x, layer, f"{prefix}self_attn.")
        x, residual = self.norm(x, residual, f"{prefix}post_attention_layernorm")
        names = EXPERTS.get(self._shape.config.model_type)
        if names and f"{prefix}{names.block}.gate.weight" in self._named:
            return self._mixture(x, f"{prefix}{names.block}."), residual
        return self._mlp(x, f"{prefix}mlp.", ("gate_proj", "up_proj", "down_proj")), residual

    def norm(self, x: str, residual: str, name: str) -> tuple[str, str]:
        """RMS norm of x + residual, and that sum; the first layer has no residual yet."""
        scale, eps = self._named.weight(f"{name}.weight"), self._shape.eps
        if not residual:
            kind = "SimplifiedLayerNormalization"
            return self._graph.named_op([f"{name}.out"], kind, x, scale, axis=-1, epsilon=eps, stash_type=1)[0], x
        names = [f"{name}.out", "", "", f"{name}.sum"]
        normed, _, _, total = self._graph.named_op(
            names, "SkipSimplifiedLayerNormalization", x, residual, scale, domain=MICROSOFT, epsilon=eps
        )
        return normed, total

    def _attention(self, x: str, layer: int, prefix: str) -> str:
        """Fused rotary attention that appends to the layer's KV buffers in place."""
        graph, shape = self._graph, self._shape
        qkv = self._named.linear(x, f"{prefix}qkv_proj", *(f"{prefix}{p}_proj" for p in "qkv"))
        inputs = [qkv, "", ""]
        if f"{prefix}q_norm.weight" in self._named:
            inputs = self._head_norms(qkv, prefix)
        cache: list[int | str] = ["batch", shape.kv_heads, "capacity", shape.head_dim]
        past = [graph.input(f"past_{kind}.{layer}", cache) for kind in ("key", "value")]
        present = [f"present_{kind}.{layer}" for kind in ("key", "value")]
        output, *_ = graph.named_op(
            [f"attention.{layer}", *present],
            "GroupQueryAttention",
            *(*inputs, *past, *self._places),
            domain=MICROSOFT,
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
            local_window_size=shape.windows[layer] or -1,
        )
        for name in present:
            graph.direct_output(name, cache)
        return self._named.linear(output, f"{prefix}o_proj")

    def _head_norms(self, qkv: str, prefix: str) -> list[str]:
        """Queries, keys and values apart, the first two RMS-normed per head: the kernel on the CPU does not do it."""
        graph, shape = self._graph, self._shape
        heads = (shape.heads, shape.kv_heads, shape.kv_heads)
        widths = graph.ints(*(count * shape.head_dim for count in heads))
        *normed, values = graph.op_n(3, "Split", qkv, widths, axis=-1)
        for i, (part, count) in enumerate(zip(normed, heads[:2], strict=True)):
            x = graph.op("Reshape", part, graph.ints(0, 0, count, shape.head_dim))
            scale = self._named.weight(f"{prefix}{'qk'[i]}_norm.weight")
            x = graph.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=shape.eps, stash_type=1)
            normed[i] = graph.op("Reshape", x, graph.ints(0, 0, count * shape.head_dim))
        return [*normed, values]

    def _mlp(self, x: str, prefix: str, names: tuple[str, str, str]) -> str:
        graph = self._graph
        gate, up = (self._named.linear(x, prefix + name) for name in names[:2])
        silu = graph.op("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(x)
        return self._named.linear(graph.op("Mul", silu, up), prefix + names[2])

    def _mixture(self, x: str, prefix: str) -> str:
        """Experts, and the one that all positions share if there is one. Routers stay in full precision."""
        graph, shape = self._graph, self._shape
        assert shape.experts is not None, "its tensors say that it has some"
        names = EXPERTS[shape.config.model_type]
        flat = graph.op("Reshape", x, graph.ints(-1, shape.dim))
        router = self._named.array(f"{prefix}gate.weight")
        total = mixture(
            graph,
            flat,
            plain_linear(graph, flat, f"{prefix}gate", router, None),
            [f"{prefix}experts.{i}." for i in range(len(router))],
            shape.experts.per_token,
            shape.experts.normalised,
            lambda rows, expert: self._mlp(rows, expert, (names.gate, names.up, names.down)),
        )
        shared = f"{prefix}shared_expert_gate"
        if f"{shared}.weight" in self._named:
            gate = plain_linear(graph, flat, shared, self._named.array(f"{shared}.weight"), None)
            output = self._mlp(flat, f"{prefix}shared_expert.", (names.gate, names.up, names.down))
            total = graph.op("Add", total, graph.op("Mul", output, graph.op("Sigmoid", gate)))
        return graph.op("Reshape", total, graph.op("Shape", x))
