"""Building ONNX graphs node by node, with their weights streamed to a page-aligned external file."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from salmonrun.runtime.manifest import GraphSpec, TensorSpec

OPSET = 21
MICROSOFT = "com.microsoft"
IR_VERSION = 10
PAGE = 4096  # external data is memory-mapped; a tensor that starts on a page needs no copy
INLINE_BYTES = 4096  # smaller tensors stay in the .onnx: a page each would be waste

END = 2**31 - 1  # of a slice: up to the end, whatever the size

Array = npt.NDArray[Any]
FLOAT, FLOAT16, INT32, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64
NUMPY_TYPES = {FLOAT: np.float32, FLOAT16: np.float16}


class WeightFile:
    """Appends tensors to one `.data` file as they come, so that no more than one is in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, array: Array) -> TensorProto:
        """An initializer named `name`: inline if small, else a reference to bytes appended to the file."""
        return self.stream(name, array.dtype, array.shape, [array])

    def stream(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], pieces: Iterable[Array]) -> TensorProto:
        """The same of an array that comes in pieces, in the order of its rows."""
        size = math.prod(shape) * dtype.itemsize
        if size <= INLINE_BYTES:
            whole = np.concatenate([piece.ravel() for piece in pieces]).reshape(shape)
            return onnx.numpy_helper.from_array(whole, name)
        offset = -(-self._file.tell() // PAGE) * PAGE
        self._file.seek(offset)
        for piece in pieces:
            np.ascontiguousarray(piece).tofile(self._file)
        assert self._file.tell() == offset + size, f"{name}: the pieces are not {shape} of {dtype}"
        tensor = TensorProto(
            name=name, data_type=helper.np_dtype_to_tensor_dtype(dtype), data_location=TensorProto.EXTERNAL
        )
        tensor.dims.extend(shape)
        for key, value in (("location", self.path.name), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


class GraphBuilder:
    """A growing ONNX graph. Values are named by strings; `op` adds a node and returns its output's name."""

    def __init__(self, name: str, weights: WeightFile, dtype: int = FLOAT) -> None:
        self.name = name
        self.dtype = dtype  # of activations
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def input(self, name: str, shape: Sequence[int | str], dtype: int | None = None) -> str:
        """Declare a graph input; `dtype` defaults to that of the activations."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype or self.dtype, list(shape)))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str], dtype: int | None = None) -> None:
        """Declare `value` as the graph output `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self.direct_output(name, shape, dtype)

    def direct_output(self, name: str, shape: Sequence[int | str], dtype: int | None = None) -> None:
        """Declare a graph output that a node writes under its own name: KV buffers, which must not be copied."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype or self.dtype, list(shape)))

    def weight(self, name: str, array: Array) -> str:
        """Store an array; floating point becomes the activations' dtype. The same name is stored once."""
        if name not in self._initializers:
            if np.issubdtype(array.dtype, np.floating):
                array = array.astype(NUMPY_TYPES[self.dtype])
            self._initializers[name] = self._weights.add(name, array)
        return name

    def raw_weight(self, name: str, array: Array) -> str:
        """Store an array in its own dtype."""
        if name not in self._initializers:
            self._initializers[name] = self._weights.add(name, array)
        return name

    def streamed_weight(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], pieces: Iterable[Array]) -> str:
        """Store an array that comes in pieces, in the order of its rows."""
        if name not in self._initializers:
            self._initializers[name] = self._weights.stream(name, dtype, shape, pieces)
        return name

    def ints(self, *values: int) -> str:
        """A 1-D int64 constant."""
        return self.raw_weight("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def int_scalar(self, value: int) -> str:
        """A 0-D int64 constant."""
        return self.raw_weight(f"int_{value}", np.array(value, np.int64))

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return its name. An empty input name skips an optional input."""
        return self.op_n(1, kind, *inputs, domain=domain, **attributes)[0]

    def op_n(self, outputs: int, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node with several outputs and return their names."""
        self._count += 1
        names = [f"{kind}_{self._count}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        return self.named_op(names, kind, *inputs, domain=domain, **attributes)

    def named_op(self, names: list[str], kind: str, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node whose outputs have given names; "" leaves an optional output out."""
        self._nodes.append(
            helper.make_node(kind, list(inputs), names, name=f"{kind}_{len(self._nodes)}", domain=domain, **attributes)
        )
        return names

    def dim(self, value: str, axis: int) -> str:
        """The size of one axis as a 1-D int64 tensor of one element."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def spec(self, file: str) -> GraphSpec:
        """The graph's signature, for the manifest."""
        return GraphSpec(file, *(tuple(map(_tensor_spec, values)) for values in (self._inputs, self._outputs)))

    def save(self, path: Path) -> None:
        """Write the .onnx; its weights are already in the weight file."""
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, list(self._initializers.values())
        )
        model = helper.make_model(
            graph,
            producer_name="salmonrun",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        )
        path.write_bytes(model.SerializeToString())


def with_past(graph: GraphBuilder, layer: int, dim: int, key: str, value: str) -> tuple[str, str]:
    """An encoder layer's keys and values [1, T, dim] behind those of the past: [1, P + T, dim], outputs, too."""
    joined = []
    for kind, new in (("key", key), ("value", value)):
        past = graph.input(f"past_{kind}.{layer}", [1, "past", dim])
        joined += graph.named_op([f"present_{kind}.{layer}"], "Concat", past, new, axis=1)
        graph.direct_output(joined[-1], [1, "past_and_present", dim])
    return joined[0], joined[1]


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dims = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return TensorSpec(value.name, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), dims)
