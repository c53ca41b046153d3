"""The LLM's weights for the native decoder: quantized matrices in layout `t16`, vectors and rotary tables plain."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from salmonrun.export.graphs.linear import Stacked, to_numpy
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.graphs.rope import rope_tables
from salmonrun.export.options import LlmPrecision
from salmonrun.export.weights.tensor_file import Array, TensorFileWriter
from salmonrun.kernels.formats import GROUP, quantize_t16
from salmonrun.runtime.decoders.native_weights import BITS
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.manifest import NativeWeights
from salmonrun.training.model.llm import EMBEDDING, LM_HEAD
from salmonrun.training.tensors import LazyTensors

FILE = "llm/native.bin"
# As ONNX Runtime's int4 kernels have it, so that a bundle of both says the same.
BLOCK: Literal[32] = 32
ACTIVATION_BLOCK: Literal[32] = 32
PIECE = 2**22  # values of a matrix that are read at once, to bound the memory
_NUMBERS = re.compile(r"(\d+)")


def native_weights(precision: LlmPrecision) -> NativeWeights:
    """What the manifest says of them. The output layer decides between tokens: it stays at 8 bits."""
    assert precision != "fp32", "the options refuse it"
    return NativeWeights(FILE, "t16", BLOCK, ACTIVATION_BLOCK, precision, lm_head="int8")


def check_native(shape: LlmShape) -> None:
    """Refuse an LLM that the native decoder does not run.

    Raises:
        ConfigError: it has experts.
    """
    if shape.experts:
        raise ConfigError("the native decoder does not run experts yet; export with --decoder onnx")


def write_native(path: Path, shape: LlmShape, tensors: LazyTensors, precision: LlmPrecision, max_length: int) -> None:
    """Write the file, tensor by tensor, in the order a step reads them: layer after layer, the output layer last.

    Args:
        path: of the file.
        shape: the LLM's.
        tensors: exactly those of transformers' model, adapters merged.
        precision: of the matrices in the layers.
        max_length: positions of the rotary tables.

    Raises:
        ConfigError: the LLM has experts.
    """
    check_native(shape)
    bits = BITS[precision]
    with TensorFileWriter(path) as file:
        for name in sorted(tensors.keys() - {EMBEDDING, LM_HEAD}, key=_place):
            tensor = tensors[name]()
            if tensor.ndim == 2:
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


def _write_matrix(file: TensorFileWriter, name: str, weight: Stacked, bits: int) -> None:
    rows, columns = weight.shape
    groups, blocks = -(-rows // GROUP), -(-columns // BLOCK)
    scales: list[Array] = []

    def packed() -> Iterator[Array]:
        step = max(1, PIECE // columns // GROUP) * GROUP
        for first in range(0, rows, step):
            values, steps = quantize_t16(weight[first : first + step, :], bits, BLOCK)
            scales.append(steps)
            yield values

    file.stream(name, np.dtype(np.uint8), (groups, blocks * BLOCK // 32, bits, 64), packed())
    file.add(f"{name}.scale", np.concatenate(scales))
