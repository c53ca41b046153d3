"""The LLM's weights in one file, whatever decoder it is for: which tensors there are, in the order of a step."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from salmonrun.export.graphs.linear import to_numpy
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.graphs.rope import rope_tables
from salmonrun.export.weights.stacked import Getter, place, stacked
from salmonrun.export.weights.tensor_file import Array, TensorFileWriter
from salmonrun.runtime.manifest import NativeWeights, TorchWeights
from salmonrun.training.model.llm import EMBEDDING, LM_HEAD
from salmonrun.training.tensors import LazyTensors


class MatrixWriter(Protocol):
    """Writes matrices as a decoder wants them."""

    def add(self, name: str, getters: list[Getter], precision: str, stacked: bool = False) -> None:
        """One matrix; or several of one shape, `stacked`."""
        ...


def write_llm(
    path: Path,
    shape: LlmShape,
    tensors: LazyTensors,
    weights: NativeWeights | TorchWeights,
    max_length: int,
    writer: Callable[[TensorFileWriter], MatrixWriter],
    vector: Callable[[str, Array], Array] = lambda _, values: values,
) -> None:
    """Write the file, tensor by tensor: layer after layer, the output layer last.

    Args:
        path: of the file.
        shape: the LLM's.
        tensors: exactly those of transformers' model, adapters merged.
        weights: how matrices are stored, as the manifest says it.
        max_length: positions of the rotary tables.
        writer: of matrices, into the file.
        vector: what becomes of a tensor of this name that is no matrix.
    """
    inner = {name: get for name, get in tensors.items() if name not in (EMBEDDING, LM_HEAD)}
    named = stacked(inner, shape.config.model_type)
    with TensorFileWriter(path) as file:
        matrices = writer(file)
        for name in sorted(named, key=place):
            getters = named[name]
            if ".experts." in name:
                matrices.add(name, getters, weights.precision, stacked=True)
            elif name.endswith("_proj.weight"):  # told by the name, so that nothing is read for it
                matrices.add(name, getters, weights.precision_of(name.removesuffix(".weight")))
            else:
                file.add(name, vector(name, to_numpy(getters[0]())))
        matrices.add(LM_HEAD, [tensors[EMBEDDING if shape.tied else LM_HEAD]], weights.lm_head)
        for name, table in zip(("cos", "sin"), rope_tables(shape.config, shape.head_dim, max_length), strict=True):
            file.add(f"rope.{name}", table)
