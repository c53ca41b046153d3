"""The LLM's weights for the native decoder: quantized matrices in layout `t16`, vectors and rotary tables plain."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from salmonrun.export.graphs.linear import BLOCK, Stacked, super_block_of
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.options import LlmPrecision
from salmonrun.export.weights.llm_file import write_llm
from salmonrun.export.weights.stacked import Getter
from salmonrun.export.weights.tensor_file import Array, TensorFileWriter
from salmonrun.kernels.formats import GROUP, LINE, pack_nf4_t16, quantize_nf4_t16, quantize_super_t16, quantize_t16
from salmonrun.runtime.manifest import NativeWeights
from salmonrun.runtime.matrices import BITS
from salmonrun.training.foreign.quantized import FourBitMatrix
from salmonrun.training.tensors import LazyTensors

FILE = "llm/native.bin"
NF4_BLOCK: Literal[64] = 64  # as it is published
# Measured (docs/performance.md, "Numeric formats"): beside weights of 4 bits no less accurate than blocks of 32 or 64,
# and faster in prompts.
INT4_ACTIVATIONS: Literal[128] = 128
PIECE = 2**22  # values of a matrix that are read at once, to bound the memory
PARTS = ("multiple", "scale")  # of a matrix, beside its values


def native_weights(
    precision: LlmPrecision, block: Literal[32, 64] = BLOCK, int8: tuple[str, ...] = ()
) -> NativeWeights:
    """What the manifest says of them; of integers, blocks are those of the graph, so that both decoders say the same.

    The output layer decides between tokens: it stays at 8 bits, as the matrices `int8` beside others of int4.
    """
    assert precision != "fp32", "the options refuse it"
    block = NF4_BLOCK if precision == "nf4" else block
    activations = INT4_ACTIVATIONS if precision == "int4" else block
    super_block = super_block_of(precision, block)
    return NativeWeights(FILE, "t16", block, activations, precision, lm_head="int8", int8=int8, super_block=super_block)


def write_native(
    path: Path,
    shape: LlmShape,
    tensors: LazyTensors,
    weights: NativeWeights,
    max_length: int,
    done: Callable[[int], object] = lambda _: None,
) -> None:
    """Write the file; see `write_llm`. `done` is called with each number of weights that are written."""
    write_llm(path, shape, tensors, weights, max_length, lambda file: _Matrices(file, weights, done), _vector)


def _vector(name: str, values: Array) -> Array:
    """A bias of the feed-forward part is filled up as the rows of its matrix are."""
    if name.endswith(("gate_proj.bias", "up_proj.bias")):
        return np.pad(values, (0, -len(values) % GROUP))
    return values


class _Matrices:
    """Writes quantized matrices, each in pieces of whole groups."""

    def __init__(self, file: TensorFileWriter, weights: NativeWeights, done: Callable[[int], object]) -> None:
        self._file = file
        self._block = weights.block
        self._super_block = weights.super_block
        self._done = done

    def add(self, name: str, getters: list[Getter], precision: str, stacked: bool = False) -> None:
        """One matrix; or several of one shape, `stacked`, each begun with a group of its own."""
        read = (self._read(get, precision) for get in getters)
        (rows, columns), first = next(read)
        scales: list[tuple[Array, ...]] = []  # and multiples before them

        def packed() -> Iterator[Array]:
            for values, *steps in chain(first, chain.from_iterable(pieces for _, pieces in read)):
                scales.append(tuple(steps))
                yield values

        lines = -(-columns // self._block) * self._block // 32
        outer = (*((len(getters),) if stacked else ()), -(-rows // GROUP))
        self._file.stream(name, np.dtype(np.uint8), (*outer, lines, BITS[precision], LINE), packed())
        for part, pieces in zip(PARTS[-len(scales[0]) :], zip(*scales, strict=True), strict=True):
            self._file.add(f"{name}.{part}", np.concatenate(pieces).reshape(*outer, -1, GROUP))

    def _read(self, get: Getter, precision: str) -> tuple[tuple[int, ...], Iterator[tuple[Array, ...]]]:
        """(out, in), and pieces of packed values, multiples if there are any, and scales."""
        kept = get.nf4(self._block) if precision == "nf4" and isinstance(get, FourBitMatrix) else None
        if kept is not None:  # what adapters were trained on; quantized again, its scales would be others
            self._done(kept[0].size)
            return kept[0].shape, iter([pack_nf4_t16(*kept)])
        weight = Stacked([get()])
        return weight.shape, self._quantized(weight, precision)

    def _quantized(self, weight: Stacked, precision: str) -> Iterator[tuple[Array, ...]]:
        rows, columns = weight.shape
        step = max(1, PIECE // columns // GROUP) * GROUP
        for first in range(0, rows, step):
            piece = weight[first : first + step, :]
            if precision == "nf4":
                yield quantize_nf4_t16(piece, self._block)
            elif precision == "int4" and self._super_block:
                yield quantize_super_t16(piece, self._block)
            else:
                yield quantize_t16(piece, BITS[precision], self._block)
            self._done(piece.size)
