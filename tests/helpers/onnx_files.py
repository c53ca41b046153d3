"""What tests of .onnx files share: the onnx package's own reading of what salmonrun reads itself, and small graphs."""

from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from salmonrun.runtime.manifest import TensorSpec
from salmonrun.runtime.onnx_file import ExternalData, OnnxFile


def read_with_onnx(content: bytes) -> OnnxFile:
    model = onnx.ModelProto.FromString(content)
    graph = model.graph
    return OnnxFile(
        tuple(map(_spec, graph.input)),
        tuple(map(_spec, graph.output)),
        frozenset(opset.domain for opset in model.opset_import),
        frozenset((node.domain, node.op_type) for node in graph.node),
        tuple(_external(t) for t in graph.initializer if t.data_location == TensorProto.EXTERNAL),
        frozenset(each.i for node in graph.node for each in node.attribute if each.name == "num_heads"),
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dims = [dim.dim_param if dim.HasField("dim_param") else dim.dim_value for dim in tensor.shape.dim]
    return TensorSpec(value.name, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), tuple(dims))


def _external(tensor: TensorProto) -> ExternalData:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return ExternalData(tensor.name, entries["location"], int(entries["offset"]), int(entries["length"]))


def small_model(**model: Any) -> onnx.ModelProto:
    """y [batch, 3] = x [batch, 2] @ w + b, w outside of the file."""
    w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "small.onnx.data"), ("offset", "4096"), ("length", "24")):
        w.external_data.add(key=key, value=value)
    b = helper.make_tensor("b", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    shape = numpy_helper.from_array(numpy_helper.np.array([-1, 3]), "shape")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], name="product"),
        helper.make_node("Add", ["xw", "b"], ["sum"]),
        helper.make_node("QuickGelu", ["sum"], ["gelu"], domain="com.microsoft", alpha=1.0),
        helper.make_node("Transpose", ["gelu"], ["turned"], perm=[0, 1]),
        helper.make_node("Reshape", ["turned", "shape"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "small", [x], [y], [w, b, shape])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets, producer_name="salmonrun", **model)
