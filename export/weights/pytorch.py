"""The LLM's weights for PyTorch: rows as they are, quantized in blocks or plain; vectors and rotary tables."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from salmonrun.export.graphs.linear import BLOCK, Stacked, quantize
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.options import LlmPrecision, Target
from salmonrun.export.weights.llm_file import write_llm
from salmonrun.export.weights.native import NF4_BLOCK, PIECE
from salmonrun.export.weights.stacked import Getter
from salmonrun.export.weights.tensor_file import Array, TensorFileWriter
from salmonrun.kernels.formats import F32, pack_nibbles, quantize_nf4
from salmonrun.runtime.manifest import TorchWeights
from salmonrun.training.foreign.quantized import FourBitMatrix
from salmonrun.training.tensors import LazyTensors

FILE = "llm/torch.bin"
FloatPrecision = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BITS = {"int8": 8, "int4": 4}


def torch_weights(
    precision: LlmPrecision,
    target: Target,
    stored: torch.dtype,
    block: Literal[32, 64] = BLOCK,
    int8: tuple[str, ...] = (),
) -> TorchWeights:
    """What the manifest says of them.

    What is not quantized is float32 for a CPU; for a GPU it is as the checkpoint has it, whose dtype is `stored`, but
    bfloat16 where that is float32. Beside integers the output layer has 8 bits; beside nf4 it is not quantized, as
    bitsandbytes leaves it.
    """
    plain: FloatPrecision = "fp16" if stored == torch.float16 else "bf16"
    if target == "cpu":
        plain = "fp32"
    if precision == "fp32":
        return TorchWeights(FILE, block, plain, lm_head=plain)
    if precision == "nf4":
        return TorchWeights(FILE, NF4_BLOCK, "nf4", lm_head=plain)
    return TorchWeights(FILE, block, precision, lm_head="int8", int8=int8)


def write_torch(
    path: Path,
    shape: LlmShape,
    tensors: LazyTensors,
    weights: TorchWeights,
    max_length: int,
    done: Callable[[int], object] = lambda _: None,
) -> None:
    """Write the file; see `write_llm`. `done` is called with each number of weights that are written."""
    write_llm(path, shape, tensors, weights, max_length, lambda file: _Matrices(file, weights.block, done))


class _Matrices:
    """Writes matrices, each in pieces of rows."""

    def __init__(self, file: TensorFileWriter, block: int, done: Callable[[int], object]) -> None:
        self._file = file
        self._block = block
        self._done = done

    def add(self, name: str, getters: list[Getter], precision: str, stacked: bool = False) -> None:
        """One matrix; or several of one shape, `stacked`."""
        read = (self._read(get, precision) for get in getters)
        (rows, columns), first = next(read)
        scales: list[F32] = []

        def values() -> Iterator[Array]:
            for piece, steps in chain(first, chain.from_iterable(pieces for _, pieces in read)):
                if steps is not None:
                    scales.append(steps)
                yield piece

        outer, blocks = ((len(getters), rows) if stacked else (rows,)), -(-columns // self._block)
        if precision in DTYPES:
            dtype = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}[precision]
            self._file.stream(name, np.dtype(dtype), (*outer, columns), values())
            return
        packed = self._block * BITS.get(precision, 4) // 8
        self._file.stream(name, np.dtype(np.uint8), (*outer, blocks, packed), values())
        self._file.add(f"{name}.scale", np.concatenate([steps.ravel() for steps in scales]).reshape(*outer, blocks))

    def _read(self, get: Getter, precision: str) -> tuple[tuple[int, ...], Iterator[tuple[Array, F32 | None]]]:
        """(out, in), and pieces of values and, if they are packed, scales."""
        kept = get.nf4(self._block) if precision == "nf4" and isinstance(get, FourBitMatrix) else None
        if kept is not None:  # the published values and scales, bit for bit
            indices, scales = kept
            self._done(indices.size)
            return indices.shape, iter([(pack_nibbles(indices, "high"), scales)])
        tensor = get()
        if precision in DTYPES:
            return tensor.shape, self._plain(tensor, DTYPES[precision])
        return tensor.shape, self._quantized(Stacked([tensor]), precision)

    def _plain(self, tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[Array, None]]:
        for piece in tensor.split(max(1, PIECE // tensor.shape[1])):
            values = piece.detach().to(dtype).contiguous()
            yield (values.view(torch.uint16) if dtype == torch.bfloat16 else values).numpy(), None
            self._done(piece.numel())

    def _quantized(self, weight: Stacked, precision: str) -> Iterator[tuple[Array, F32]]:
        rows, columns = weight.shape
        step = max(1, PIECE // columns)
        for first in range(0, rows, step):
            piece = weight[first : first + step, :]
            if precision == "nf4":
                whole = np.pad(piece, ((0, 0), (0, -columns % self._block)))
                yield quantize_nf4(whole, self._block)
            else:
                yield quantize(piece, BITS[precision], self._block)
            self._done(piece.size)
