"""The LLM's weights for the native decoder: quantized matrices in layout `t16`, vectors and rotary tables plain."""

import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from salmonrun.export.graphs.linear import Stacked, to_numpy
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.graphs.rope import rope_tables
from salmonrun.export.options import LlmPrecision
from salmonrun.export.weights.tensor_file import Array, TensorFileWriter
from salmonrun.kernels.formats import GROUP, quantize_t16
from salmonrun.runtime.decoders.native_weights import BITS
from salmonrun.runtime.manifest import NativeWeights
from salmonrun.training.model.experts import EXPERTS
from salmonrun.training.model.llm import EMBEDDING, LM_HEAD
from salmonrun.training.tensors import LazyTensors

FILE = "llm/native.bin"
# As ONNX Runtime's int4 kernels have it, so that a bundle of both says the same.
BLOCK: Literal[32] = 32
ACTIVATION_BLOCK: Literal[32] = 32
PIECE = 2**22  # values of a matrix that are read at once, to bound the memory
ROUTERS = ("mlp.gate.weight", "shared_expert_gate.weight")  # they decide between experts: not quantized
_NUMBERS = re.compile(r"(\d+)")
_EXPERT = re.compile(r"(.+\.mlp\.experts)\.\d+\.(\w+)\.weight")


def native_weights(precision: LlmPrecision) -> NativeWeights:
    """What the manifest says of them. The output layer decides between tokens: it stays at 8 bits."""
    assert precision != "fp32", "the options refuse it"
    return NativeWeights(FILE, "t16", BLOCK, ACTIVATION_BLOCK, precision, lm_head="int8")


def write_native(path: Path, shape: LlmShape, tensors: LazyTensors, precision: LlmPrecision, max_length: int) -> None:
    """Write the file, tensor by tensor, in the order a step reads them: layer after layer, the output layer last.

    Args:
        path: of the file.
        shape: the LLM's.
        tensors: exactly those of transformers' model, adapters merged.
        precision: of the matrices in the layers.
        max_length: positions of the rotary tables.
    """
    bits = BITS[precision]
    inner = {name: get for name, get in tensors.items() if name not in (EMBEDDING, LM_HEAD)}
    stored = _stacked(inner, shape.config.model_type)
    with TensorFileWriter(path) as file:
        for name in sorted(stored, key=_place):
            if ".experts." in name:
                _write_experts(file, name, stored[name], bits)
                continue
            tensor = stored[name][0]()
            if tensor.ndim == 2 and not name.endswith(ROUTERS):
                _write_matrix(file, name, Stacked([tensor]), bits)
            else:
                file.add(name, _vector(name, to_numpy(tensor)))
        _write_matrix(file, LM_HEAD, Stacked([tensors[EMBEDDING if shape.tied else LM_HEAD]()]), 8)
        for name, table in zip(("cos", "sin"), rope_tables(shape.config, shape.head_dim, max_length), strict=True):
            file.add(f"rope.{name}", table)


def _place(name: str) -> list[tuple[int, str]]:
    """Names in the order of the numbers in them."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in _NUMBERS.split(name)]


def _vector(name: str, values: Array) -> Array:
    """A bias of the feed-forward part is filled up as the rows of its matrix are."""
    if name.endswith(("gate_proj.bias", "up_proj.bias")):
        return np.pad(values, (0, -len(values) % GROUP))
    return values


def _stacked(tensors: LazyTensors, family: str) -> dict[str, list[Callable[[], Tensor]]]:
    """The tensors under the names of the file: of a layer's experts one for all, whatever the family calls them."""
    names = EXPERTS.get(family)
    if names is None:
        return {name: [get] for name, get in tensors.items()}
    parts = {names.gate: "gate_proj", names.up: "up_proj", names.down: "down_proj"}
    stored: dict[str, list[Callable[[], Tensor]]] = {}
    for name in sorted(tensors, key=_place):  # experts by their numbers
        renamed = name.replace(f".{names.block}.", ".mlp.")
        expert = _EXPERT.fullmatch(renamed)
        stored.setdefault(f"{expert[1]}.{parts[expert[2]]}.weight" if expert else renamed, []).append(tensors[name])
    return stored


def _write_matrix(file: TensorFileWriter, name: str, weight: Stacked, bits: int) -> None:
    scales: list[Array] = []
    file.stream(name, np.dtype(np.uint8), _packed_shape(weight, bits), _packed(weight, bits, scales))
    file.add(f"{name}.scale", np.concatenate(scales))


def _write_experts(file: TensorFileWriter, name: str, experts: list[Callable[[], Tensor]], bits: int) -> None:
    """Matrices of one shape, each begun with a group of its own, one after the other."""
    first, rest = Stacked([experts[0]()]), (Stacked([get()]) for get in experts[1:])
    shape = _packed_shape(first, bits)
    scales: list[Array] = []
    packed = (piece for matrix in chain([first], rest) for piece in _packed(matrix, bits, scales))
    file.stream(name, np.dtype(np.uint8), (len(experts), *shape), packed)
    file.add(f"{name}.scale", np.concatenate(scales).reshape(len(experts), shape[0], -1, GROUP))


def _packed_shape(weight: Stacked, bits: int) -> tuple[int, ...]:
    rows, columns = weight.shape
    return -(-rows // GROUP), -(-columns // BLOCK) * BLOCK // 32, bits, 64


def _packed(weight: Stacked, bits: int, scales: list[Array]) -> Iterator[Array]:
    """Pieces of whole groups; their scales are appended to `scales`."""
    rows, columns = weight.shape
    step = max(1, PIECE // columns // GROUP) * GROUP
    for first in range(0, rows, step):
        values, steps = quantize_t16(weight[first : first + step, :], bits, BLOCK)
        scales.append(steps)
        yield values
