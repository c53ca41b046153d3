"""Matrix products in the precisions a bundle can have, as graph nodes: weights in, quantized weights and a node out."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from export.graph import FLOAT, MICROSOFT, GraphBuilder

F32 = npt.NDArray[np.float32]
Linear = Callable[[GraphBuilder, str, str, F32, "F32 | None"], str]  # (graph, input, name, [out, in], [out]) -> output

EncoderPrecision = Literal["fp32", "int8"]
LlmPrecision = Literal["fp32", "int8", "int4"]

BLOCK = 32  # the block size that is fast on both CPU and CUDA
ACCURACY_INT8 = 4  # MatMulNBits quantizes activations to int8 per block: the level with VNNI kernels
ROWS_AT_ONCE = 8192  # large matrices are quantized in slices, to bound the memory


def plain_linear(graph: GraphBuilder, x: str, name: str, weight: F32, bias: F32 | None) -> str:
    """x @ weight.T + bias in the activations' precision."""
    product = graph.op("MatMul", x, graph.weight(f"{name}.weight", weight.T))
    return product if bias is None else graph.op("Add", product, graph.weight(f"{name}.bias", bias))


def dynamic_int8_linear(graph: GraphBuilder, x: str, name: str, weight: F32, bias: F32 | None) -> str:
    """int8 weights with a scale per output; activations are quantized to uint8 as they come (per tensor)."""
    scale = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny) / 127  # [out]
    quantized = np.rint(weight / scale[:, None]).astype(np.int8)
    inputs = [
        x,
        graph.raw_weight(f"{name}.weight", quantized.T),
        graph.raw_weight(f"{name}.scale", scale.astype(np.float32)),
        graph.raw_weight(f"{name}.zero_point", np.zeros(len(scale), np.int8)),
        *([] if bias is None else [graph.weight(f"{name}.bias", bias)]),
    ]
    return graph.op("DynamicQuantizeMatMul", *inputs, domain=MICROSOFT)


def blockwise_linear(bits: int) -> Linear:
    """MatMulNBits: symmetric blocks of 32 along the input, one scale each."""

    def linear(graph: GraphBuilder, x: str, name: str, weight: F32, bias: F32 | None) -> str:
        packed, scales = quantize_blocks(weight, bits)
        product = graph.op(
            "MatMulNBits",
            x,
            graph.raw_weight(f"{name}.weight", packed),
            graph.weight(f"{name}.scale", scales),
            domain=MICROSOFT,
            K=weight.shape[1],
            N=weight.shape[0],
            bits=bits,
            block_size=BLOCK,
            accuracy_level=ACCURACY_INT8 if graph.dtype == FLOAT else 0,
        )
        return product if bias is None else graph.op("Add", product, graph.weight(f"{name}.bias", bias))

    return linear


def quantize_blocks(weight: F32, bits: int) -> tuple[npt.NDArray[np.uint8], F32]:
    """MatMulNBits' layout: packed [out, blocks, 32 * bits / 8] (low nibble first) and scales [out, blocks]."""
    pieces = [_quantize_rows(weight[i : i + ROWS_AT_ONCE], bits) for i in range(0, len(weight), ROWS_AT_ONCE)]
    packed, scales = zip(*pieces, strict=True)
    return np.concatenate(packed), np.concatenate(scales)


def dequantize_blocks(packed: npt.NDArray[np.uint8], scales: F32, bits: int) -> F32:
    """What MatMulNBits computes with: [out, blocks * 32]."""
    values = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], BLOCK)
    centred = values.astype(np.float32) - 2 ** (bits - 1)
    return (centred * scales[..., None]).reshape(len(packed), -1)


def _quantize_rows(weight: F32, bits: int) -> tuple[npt.NDArray[np.uint8], F32]:
    rows, columns = weight.shape
    blocks = np.pad(weight, ((0, 0), (0, -columns % BLOCK))).reshape(rows, -1, BLOCK)
    zero_point = 2 ** (bits - 1)
    # The value of largest magnitude maps to the end of the range that has one step more.
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
    scale = largest / -zero_point  # [rows, blocks, 1]
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
    quantized = np.clip(np.rint(blocks * inverse) + zero_point, 0, 2**bits - 1).astype(np.uint8)
    if bits == 4:
        quantized = quantized[..., 0::2] | (quantized[..., 1::2] << 4)
    return quantized, scale[..., 0]


ENCODER_LINEARS: dict[str, Linear] = {"fp32": plain_linear, "int8": dynamic_int8_linear}
LLM_LINEARS: dict[str, Linear] = {"fp32": plain_linear, "int8": blockwise_linear(8), "int4": blockwise_linear(4)}
# The output layer decides between tokens: with int4 it stays at 8 bits.
LM_HEAD_LINEARS: dict[str, Linear] = {"fp32": plain_linear, "int8": blockwise_linear(8), "int4": blockwise_linear(8)}


def to_numpy(tensor: Any) -> F32:
    """A torch tensor of any floating dtype as a float32 array."""
    array: F32 = tensor.detach().float().cpu().numpy()
    return array
