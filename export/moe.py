"""A mixture of experts as graph nodes: each expert computes the positions that chose it, and no others."""

from collections.abc import Callable

import numpy as np
from onnx import helper

from export.graph import FLOAT, GraphBuilder

Mlp = Callable[[str, str], str]  # (input [n, dim], prefix of its tensors) -> output [n, dim]


def mixture(
    graph: GraphBuilder, x: str, router: str, experts: list[str], top_k: int, normalised: bool, mlp: Mlp
) -> str:
    """Weighted sum of the top_k experts of each position.

    Plain nodes, and not onnxruntime's fused MoE (float weights only) and QMoE (other blocks and rounding): an expert's
    matrices are stored and multiplied as all others of the graph are, in every precision. The price is about a dozen
    small nodes for every expert, chosen or not; their products of no rows cost next to nothing.

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
    places, outputs = [], []
    for number, prefix in enumerate(experts):
        hits = graph.op("NonZero", graph.op("Equal", chosen, graph.int_scalar(number)))  # [2, n]: positions, choices
        places.append(graph.op("Transpose", hits, perm=[1, 0]))
        positions = graph.op("Gather", hits, graph.int_scalar(0), axis=0)
        outputs.append(mlp(graph.op("Gather", x, positions, axis=0), prefix))
    # Every choice of every position is in exactly one expert's list, so that the scattered outputs leave no gap.
    size = graph.op("Concat", graph.op("Shape", chosen), graph.dim(x, 1), axis=0)
    zero = helper.make_tensor("zero", graph.dtype, [1], np.zeros(1, np.float32).tolist())
    outcome = graph.op(
        "ScatterND",
        graph.op("ConstantOfShape", size, value=zero),
        graph.op("Concat", *places, axis=0),
        graph.op("Concat", *outputs, axis=0),
    )  # [T, top_k, dim]
    weights = graph.op("Cast", graph.op("Unsqueeze", weights, graph.ints(-1)), to=graph.dtype)
    return graph.op("ReduceSum", graph.op("Mul", outcome, weights), graph.ints(1), keepdims=0)
