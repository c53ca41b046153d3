"""Weights that bitsandbytes stored in 4 bits, read without bitsandbytes into the very values it computes with.

A matrix `P.weight` of such a file is nibbles, the high one first, that index a table of 16 values (`.quant_map`); each
block of the flattened matrix is scaled by its largest magnitude (`.absmax`). Nested, those scales are bytes that index
`.nested_quant_map`, are scaled in turn by blocks (`.nested_absmax`), and an offset is added: double quantization in
QLoRA (Dettmers et al. 2023, section 3). Shape, dtype and block sizes are JSON in `.quant_state.bitsandbytes__nf4`.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from salmonrun.kernels.formats import F32, NF4, Bytes, dequantize_scales, dequantize_table, unpack_nibbles
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.runtime.schema import from_dict
from salmonrun.training.tensors import LazyTensors

STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class QuantState:
    """The JSON beside a 4-bit matrix."""

    quant_type: str
    blocksize: int
    dtype: str
    shape: tuple[int, ...]
    nested_blocksize: int = 0
    nested_dtype: str = "float32"
    nested_offset: float = 0.0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES or self.nested_dtype != "float32":
            raise ConfigError(f"values of {self.dtype} and scales of {self.nested_dtype} are not known")
        if self.blocksize < 1 or self.nested_blocksize < 0:
            raise ConfigError(f"blocks of {self.blocksize} and {self.nested_blocksize} are not possible")


def check_method(quantization: dict[str, Any], where: str) -> None:
    """Refuse an LLM folder whose `quantization_config` is not bitsandbytes' in 4 bits.

    Raises:
        CheckpointError: names the method.
    """
    method = quantization.get("quant_method")
    four = quantization.get("load_in_4bit", quantization.get("_load_in_4bit"))  # the latter in some old folders
    if method != "bitsandbytes" or not four:
        raise CheckpointError(
            f"{where} is quantized (quant_method {method!r}, load_in_4bit {four!r}); only bitsandbytes' 4 bits are "
            "read: use the folder that it was made from, in float32, float16 or bfloat16"
        )


def dequantized(tensors: LazyTensors, where: str) -> LazyTensors:
    """The tensors of a file with every 4-bit matrix as one tensor of its own shape and dtype, computed when asked for.

    Raises:
        CheckpointError: a matrix lacks one of its tensors, now; or its sizes do not fit together, when it is read.
    """
    plain = dict(tensors)
    for name in tensors:
        suffix = next((suffix for suffix in STATES if name.endswith(suffix)), None)
        if suffix is None:
            continue
        matrix = name.removesuffix(suffix)
        pieces = {"state": plain.pop(name)}
        for piece in ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"):
            if f"{matrix}{piece}" in plain:
                pieces[piece] = plain.pop(f"{matrix}{piece}")
        missing = [f"{matrix}{piece}" for piece in ("", ".absmax", ".quant_map") if piece not in pieces]
        if missing or (".nested_absmax" in pieces) != (".nested_quant_map" in pieces):
            raise CheckpointError(f"{where}: 4-bit {matrix} is incomplete: {missing or 'half of its nested scales'}")
        plain[matrix] = FourBitMatrix(pieces, f"{where}: {matrix}")
    return plain


@dataclass(frozen=True, eq=False)
class FourBitMatrix:
    """A matrix as LazyTensors have it: called, it is the plain values. What it is stored as can be had, too."""

    pieces: LazyTensors
    where: str

    def __call__(self) -> Tensor:
        """The values, rounded to the dtype the matrix had."""
        state, arrays = self._read()
        with self._explained():
            values = dequantize(arrays, state, math.prod(state.shape))
        return rounded(values, DTYPES[state.dtype]).reshape(state.shape)

    def nf4(self, block: int) -> tuple[Bytes, F32] | None:
        """Indices [out, in] into NF4, and scales [out, in / block] of each `block` of a row; None: not possible."""
        state, arrays = self._read()
        whole = len(state.shape) == 2 and state.shape[1] % block == 0 and state.blocksize % block == 0
        if not whole or arrays[".quant_map"].tobytes() != NF4.tobytes():
            return None
        rows, columns = state.shape
        with self._explained():
            indices = unpack_nibbles(arrays[""], "high").reshape(rows, columns)
            shared = np.repeat(scales(arrays, state), state.blocksize // block)[: rows * columns // block]
            return indices, shared.reshape(rows, columns // block)

    def _read(self) -> tuple[QuantState, dict[str, Bytes]]:
        with self._explained():
            arrays = {piece: get().flatten().view(torch.uint8).numpy() for piece, get in self.pieces.items()}
            return from_dict(QuantState, json.loads(arrays.pop("state").tobytes()), self.where), arrays

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (ConfigError, ValueError, RuntimeError, IndexError) as error:
            raise CheckpointError(f"{self.where} cannot be read as 4 bits of bitsandbytes: {error}") from error


def dequantize(arrays: dict[str, Bytes], state: QuantState, count: int) -> F32:
    """The first `count` values of a matrix in float32, from the bytes of its tensors."""
    table = arrays[".quant_map"].view(np.float32)
    return dequantize_table(arrays[""], table, scales(arrays, state), state.blocksize, count)


def scales(arrays: dict[str, Bytes], state: QuantState) -> F32:
    """One float32 scale for each block."""
    absmax = arrays[".absmax"]
    if ".nested_absmax" not in arrays:
        return absmax.view(np.float32)
    table, outer = arrays[".nested_quant_map"].view(np.float32), arrays[".nested_absmax"].view(np.float32)
    return dequantize_scales(absmax, table, outer, state.nested_blocksize, state.nested_offset)


def rounded(values: F32, dtype: torch.dtype) -> Tensor:
    """To the nearest of `dtype`, halves to even. numpy has no bfloat16: the upper 16 bits of float32."""
    if dtype != torch.bfloat16:
        return torch.from_numpy(values.astype(np.float16) if dtype == torch.float16 else values)
    bits = values.view(np.uint32)  # finite, as tables and scales are
    upper = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return torch.from_numpy(upper.astype(np.uint16)).view(torch.bfloat16)
