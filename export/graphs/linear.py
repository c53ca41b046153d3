"""Matrix products in the precisions a bundle can have, as graph nodes: weights in, quantized weights and a node out."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from salmonrun.export.graphs.builder import FLOAT, FLOAT16, MICROSOFT, NUMPY_TYPES, GraphBuilder
from salmonrun.export.graphs.encoder_products import encoder_product
from salmonrun.kernels.formats import SUPER_BLOCK, Bytes, quantize_blocks, quantize_super_blocks

F32 = npt.NDArray[np.float32]


class Matrix(Protocol):
    """Weights [out, in] of which pieces are read as float32: an array, or tensors that stay where they are stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)."""
        ...

    def __getitem__(self, piece: tuple[slice, slice]) -> F32: ...


Linear = Callable[[GraphBuilder, str, str, Matrix, "F32 | None"], str]  # (graph, input, name, weight, [out]) -> output

BLOCK: Literal[32] = 32  # of weights that are rounded to the nearest values: larger blocks cost words
ACCURACY_INT8 = 4  # MatMulNBits quantizes activations to int8 per block: the level with VNNI kernels
PIECE = 2**22  # values of a matrix that are read at once, to bound the memory
ALL = slice(None)


class Stacked:
    """Matrices [out_i, in] of any floating dtype on top of each other; in memory only as far as they are read."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = parts
        self.shape: tuple[int, ...] = (sum(len(part) for part in parts), parts[0].shape[1])

    def __getitem__(self, piece: tuple[slice, slice]) -> F32:
        rows, columns = piece
        first, end, _ = rows.indices(self.shape[0])
        found, start = [], 0
        for part in self._parts:
            here = part[max(first - start, 0) : max(end - start, 0), columns]
            if len(here):
                found.append(to_numpy(here))
            start += len(part)
        return found[0] if len(found) == 1 else np.concatenate(found)


def super_block_of(precision: str, block: int) -> Literal[128] | None:
    """Inputs that share a scale, of which blocks have multiples, for every decoder; None: blocks have their own."""
    return SUPER_BLOCK if precision == "int4" and block == BLOCK else None


def quantize(weight: F32, bits: int, block: int) -> tuple[Bytes, F32]:
    """The values that every decoder's weights have, as `quantize_blocks` gives them."""
    if super_block_of(f"int{bits}", block):
        return quantize_super_blocks(weight, block)
    return quantize_blocks(weight, bits, block)


def plain_linear(graph: GraphBuilder, x: str, name: str, weight: Matrix, bias: F32 | None) -> str:
    """x @ weight.T + bias in the activations' precision."""
    return _float_linear(graph, x, name, weight, bias, graph.dtype)


def half_linear(graph: GraphBuilder, x: str, name: str, weight: Matrix, bias: F32 | None) -> str:
    """x @ weight.T + bias in float16, which x is in, too."""
    return _float_linear(graph, x, name, weight, bias, FLOAT16)


def _float_linear(graph: GraphBuilder, x: str, name: str, weight: Matrix, bias: F32 | None, kind: int) -> str:
    rows, columns = weight.shape
    dtype = np.dtype(NUMPY_TYPES[kind])
    transposed = (weight[ALL, piece].T.astype(dtype) for piece in _pieces(columns, rows))
    product = graph.op("MatMul", x, graph.streamed_weight(f"{name}.weight", dtype, (columns, rows), transposed))
    return product if bias is None else graph.op("Add", product, graph.raw_weight(f"{name}.bias", bias.astype(dtype)))


def dynamic_int8_linear(graph: GraphBuilder, x: str, name: str, weight: Matrix, bias: F32 | None) -> str:
    """int8 weights with a scale per output; activations are quantized to uint8 as they come (per tensor)."""
    values = weight[ALL, ALL]
    scale = np.maximum(np.abs(values).max(axis=1), np.finfo(np.float32).tiny) / 127  # [out]
    quantized = np.rint(values / scale[:, None]).astype(np.int8)
    inputs = [
        x,
        graph.raw_weight(f"{name}.weight", quantized.T),
        graph.raw_weight(f"{name}.scale", scale.astype(np.float32)),
        graph.raw_weight(f"{name}.zero_point", np.zeros(len(scale), np.int8)),
        *([] if bias is None else [graph.weight(f"{name}.bias", bias)]),
    ]
    return graph.op("DynamicQuantizeMatMul", *inputs, domain=MICROSOFT)


def blockwise_linear(bits: int, block: int = BLOCK) -> Linear:
    """MatMulNBits: symmetric blocks along the input, one scale each."""

    def linear(graph: GraphBuilder, x: str, name: str, weight: Matrix, bias: F32 | None) -> str:
        rows, columns = weight.shape
        scales: list[F32] = []

        def packed() -> Iterator[Bytes]:
            for piece in _pieces(rows, columns):
                values, steps = quantize(weight[piece, ALL], bits, block)
                scales.append(steps)
                yield values

        shape = (rows, -(-columns // block), block * bits // 8)
        product = graph.op(
            "MatMulNBits",
            x,
            graph.streamed_weight(f"{name}.weight", np.dtype(np.uint8), shape, packed()),
            graph.weight(f"{name}.scale", np.concatenate(scales)),
            domain=MICROSOFT,
            K=columns,
            N=rows,
            bits=bits,
            block_size=block,
            accuracy_level=ACCURACY_INT8 if graph.dtype == FLOAT else 0,
        )
        return product if bias is None else graph.op("Add", product, graph.weight(f"{name}.bias", bias))

    return linear


def llm_linear(precision: str, block: int = BLOCK, int8: Collection[str] = ()) -> Linear:
    """Of the matrices in the LLM's layers: "fp32", "int8" or "int4"; the products `int8` have 8 bits all the same."""
    if precision == "fp32":
        return plain_linear
    usual, more = blockwise_linear({"int8": 8, "int4": 4}[precision], block), blockwise_linear(8, block)

    def linear(graph: GraphBuilder, x: str, name: str, weight: Matrix, bias: F32 | None) -> str:
        return (more if name in int8 else usual)(graph, x, name, weight, bias)

    return linear


def encoder_linear(precision: str, exact: Collection[str] = ()) -> Linear:
    """Of an encoder's matrices: "fp32", "fp16" or "int8"; the products `exact` stay in fp32 beside int8."""
    usual = ENCODER_LINEARS[precision]
    if not exact:
        return usual

    def linear(graph: GraphBuilder, x: str, name: str, weight: Matrix, bias: F32 | None) -> str:
        return (plain_linear if encoder_product(name) in exact else usual)(graph, x, name, weight, bias)

    return linear


def _pieces(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows (or columns) of `width` values each, about PIECE values long."""
    step = max(1, PIECE // width)
    return (slice(i, i + step) for i in range(0, count, step))


ENCODER_LINEARS: dict[str, Linear] = {"fp32": plain_linear, "fp16": half_linear, "int8": dynamic_int8_linear}
QFORMER_LINEARS: dict[str, Linear] = {name: ENCODER_LINEARS[name] for name in ("fp32", "fp16")}
# The output layer decides between tokens: with int4 it stays at 8 bits.
LM_HEAD_LINEARS: dict[str, Linear] = {"fp32": plain_linear, "int8": blockwise_linear(8), "int4": blockwise_linear(8)}


def to_numpy(tensor: Any) -> F32:
    """A torch tensor of any floating dtype as a float32 array."""
    array: F32 = tensor.detach().float().cpu().numpy()
    return array
