"""A mixture of experts as graph nodes: each expert computes the positions that chose it, and no others."""

from collections.abc import Callable

import numpy as np
from onnx import helper

from salmonrun.export.graphs.builder import FLOAT, INT64, GraphBuilder

Mlp = Callable[[str, str], str]  # (input [n, dim], prefix of its tensors) -> output [n, dim]


def mixture(
    graph: GraphBuilder, x: str, router: str, experts: list[str], top_k: int, normalised: bool, mlp: Mlp
) -> str:
    """Weighted sum of the top_k experts of each position.

    Plain nodes, and not onnxruntime's fused MoE (float weights only) and QMoE (other blocks and rounding): an expert's
    matrices are stored and multiplied as all others of the graph are, in every precision. The price is five
    nodes for every expert, chosen or not, though products of no rows cost little.

    Args:
        graph: to add nodes to.
        x: positions [T, dim].
        router: logits [T, experts].
        experts: prefix of each expert's tensors.
        top_k: experts a position is computed by.
        normalised: whether the chosen experts' weights are made to sum to one.
        mlp: an expert's own nodes.
    """
    probabilities = graph.op("Softmax", graph.op("Cast", router, to=FLOAT), axis=-1)
    weights, chosen = graph.op_n(2, "TopK", probabilities, graph.ints(top_k), axis=-1)  # [T, top_k]
    if normalised:
        weights = graph.op("Div", weights, graph.op("ReduceSum", weights, graph.ints(-1), keepdims=1))
    # One row for every choice of every position, sorted by expert, so that each expert's rows lie together.
    numbers = graph.raw_weight("expert_numbers", np.arange(len(experts), dtype=np.int64)[:, None, None])
    choices = graph.op("Equal", chosen, numbers)  # [experts, T, top_k]
    counts = graph.op("ReduceSum", graph.op("Cast", choices, to=INT64), graph.ints(1, 2), keepdims=0)
    hits = graph.op("NonZero", choices)  # [3, T * top_k]: expert, position, which of the position's choices
    rows = graph.op("Gather", x, graph.op("Gather", hits, graph.int_scalar(1), axis=0), axis=0)
    parts = graph.op_n(len(experts), "Split", rows, counts, axis=0)
    outputs = [mlp(part, prefix) for part, prefix in zip(parts, experts, strict=True)]
    places = graph.op("Transpose", graph.op("Gather", hits, graph.ints(1, 2), axis=0), perm=[1, 0])
    zero = helper.make_tensor("zero", graph.dtype, [1], [0.0])
    size = graph.op("Concat", graph.op("Shape", chosen), graph.dim(x, 1), axis=0)
    outcome = graph.op(
        "ScatterND",
        graph.op("ConstantOfShape", size, value=zero),
        places,
        graph.op("Concat", *outputs, axis=0),
    )  # [T, top_k, dim]: every place is written once
    weights = graph.op("Cast", graph.op("Unsqueeze", weights, graph.ints(-1)), to=graph.dtype)
    return graph.op("ReduceSum", graph.op("Mul", outcome, weights), graph.ints(1), keepdims=0)
