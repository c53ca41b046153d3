"""Mixtures of experts: how their files name an expert's matrices, of which transformers holds one tensor per layer."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ExpertNames:
    """A layer's names: {block}.gate.weight is the router, {block}.experts.E.{up}.weight a matrix of expert E."""

    block: str
    gate: str
    up: str
    down: str


EXPERTS = {
    "mixtral": ExpertNames("block_sparse_moe", "w1", "w3", "w2"),
    "qwen2_moe": ExpertNames("mlp", "gate_proj", "up_proj", "down_proj"),
    "qwen3_moe": ExpertNames("mlp", "gate_proj", "up_proj", "down_proj"),
}


def published(name: str, parameter: Tensor, names: ExpertNames) -> Iterator[tuple[str, Tensor]]:
    """A parameter of transformers' model under the names of the files: of experts, views of every matrix.

    transformers' `mlp.experts.gate_up_proj` is [experts, 2 ffn, dim] and `mlp.experts.down_proj` [experts, dim, ffn].
    """
    head, marker, tail = name.partition(".mlp.")
    if not marker:
        yield name, parameter
        return
    prefix = f"{head}.{names.block}."
    if tail == "experts.gate_up_proj":
        for expert, matrix in enumerate(parameter):
            gate, up = matrix.chunk(2)
            yield f"{prefix}experts.{expert}.{names.gate}.weight", gate
            yield f"{prefix}experts.{expert}.{names.up}.weight", up
    elif tail == "experts.down_proj":
        for expert, matrix in enumerate(parameter):
            yield f"{prefix}experts.{expert}.{names.down}.weight", matrix
    else:
        yield prefix + tail, parameter
