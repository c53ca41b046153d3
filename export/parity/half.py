"""What a graph in half precision computes on a GPU, simulated on a CPU, where ONNX Runtime computes it in float32.

Every value that the graph has in float16 is rounded to that and kept as float32: what a node is given, and what it
gives. What is too large becomes infinity, as it does there. Inside a node sums are float32, as those of tensor cores
are; attention, which a GPU may compute in one kernel or in several, is taken apart, and its scores are rounded, too.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, helper

from salmonrun.export.graphs.builder import FLOAT, FLOAT16
from salmonrun.runtime.arrays import F32, Array
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.session import Graph, running, session_options

LARGEST = float(np.finfo(np.float16).max)  # 65504
# Of these, what is given does not say what comes out.
_OF_ANOTHER_TYPE = ("Shape", "Cast", "ConstantOfShape", "Equal", "NonZero", "Range")


@dataclass(frozen=True)
class HalfRun:
    """What a simulated graph gave."""

    result: F32
    largest: float  # magnitude of all that is in float16; infinity where something was too large

    @property
    def overflows(self) -> bool:
        """Whether something was too large for 16 bits, or came of what was."""
        return not self.largest <= LARGEST


class SimulatedHalf:
    """One of a bundle's encoders, or its Q-Former, whose float16 is simulated."""

    def __init__(self, bundle: Bundle, name: str, threads: int) -> None:
        spec = bundle.graph(name)
        path = bundle.path(spec.file)
        model = onnx.load(path, load_external_data=False)
        _Rounded(model.graph).rewrite()
        options = session_options(threads)
        # As it is written: what is rounded must not be optimized away.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        self.graph = Graph(name, session, spec)
        self._largest = model.graph.output[-1].name

    def run(self, **inputs: Array) -> HalfRun:
        """The graph's result, of an encoder that hears in blocks before it has heard anything."""
        names = [self.graph.spec.result, self._largest]
        with running(self.graph.name):
            result, largest = self.graph.session.run(names, inputs | self.graph.nothing_past())
        return HalfRun(result, float(largest.max()))


@dataclass
class _Rounded:
    """Rewrites a graph in place: names stay, float16 becomes float32 that was rounded."""

    graph: onnx.GraphProto
    _half: set[str] = field(default_factory=set)  # values that are float16
    _nodes: list[NodeProto] = field(default_factory=list)
    _magnitudes: list[str] = field(default_factory=list)  # of every rounded value, the largest
    _count: int = 0

    def rewrite(self) -> None:
        """Do it; a last output has the magnitudes."""
        self._half = {tensor.name for tensor in self.graph.initializer if tensor.data_type == FLOAT16}
        for name in sorted(self._half):
            self._add("Cast", [name], _widened(name), to=FLOAT)
        assert not any(value.type.tensor_type.elem_type == FLOAT16 for value in self.graph.input), "they are float32"
        weights = set(self._half)
        for node in self.graph.node:
            half = _gives_half(node, self._half)
            self._compute(node, [_widened(name) if name in weights else name for name in node.input], half)
            for name in node.output if half else ():
                self._half.add(name)
                self._round(_exact(name), name)
        zero = self._op("Identity", [self._constant(np.zeros(1, np.float32))])  # the largest of nothing
        largest = self._op("Concat", [zero, *self._magnitudes], axis=0)
        self.graph.output.append(helper.make_tensor_value_info(largest, FLOAT, [None]))
        del self.graph.node[:]
        self.graph.node.extend(self._nodes)

    def _compute(self, node: NodeProto, given: list[str], half: bool) -> None:
        """The node over float32, what it gives in float16 not rounded yet."""
        outputs = [_exact(name) if half else name for name in node.output]
        if node.op_type == "MultiHeadAttention" and half:
            self._attention(node, given, outputs[0])
            return
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(given)
        copy.output.extend(outputs)
        if node.op_type == "Cast" and half:
            del copy.attribute[:]
            copy.attribute.append(helper.make_attribute("to", FLOAT))
        self._nodes.append(copy)

    def _attention(self, node: NodeProto, given: list[str], output: str) -> None:
        """Products, scores and shares rounded in between, as where no fused kernel is taken."""
        assert not any(given[3:]), "attention with a bias is computed in float32"
        heads = next(attribute.i for attribute in node.attribute if attribute.name == "num_heads")
        shape = self._constant(np.array([0, 0, heads, -1], np.int64))
        q, k, v = (
            self._op("Transpose", [self._op("Reshape", [name, shape])], perm=perm)
            for name, perm in zip(given[:3], ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
        )
        width = self._op("Cast", [self._op("Shape", [q], start=3, end=4)], to=FLOAT)
        scale = self._op("Reciprocal", [self._op("Sqrt", [width])])
        scores = self._rounded(self._op("Mul", [self._op("MatMul", [q, k]), scale]))
        shares = self._rounded(self._op("Softmax", [scores], axis=-1))
        joined = self._op("Transpose", [self._op("MatMul", [shares, v])], perm=[0, 2, 1, 3])
        self._add("Reshape", [joined, self._constant(np.array([0, 0, -1], np.int64))], output)

    def _round(self, exact: str, name: str) -> None:
        """Round `exact` to `name`, and note how large it is."""
        self._add("Cast", [self._op("Cast", [exact], to=FLOAT16)], name, to=FLOAT)
        flat = self._op("Reshape", [self._op("Abs", [name]), self._constant(np.array([-1], np.int64))])
        padded = self._op("Concat", [self._constant(np.zeros(1, np.float32)), flat], axis=0)  # some of it may be empty
        self._magnitudes.append(self._op("ReduceMax", [padded], keepdims=1))

    def _rounded(self, exact: str) -> str:
        name = f"{exact}/rounded"
        self._round(exact, name)
        return name

    def _constant(self, array: Array) -> str:
        name = f"half/constant_{array.dtype}_{'_'.join(map(str, array.tolist()))}"
        if not any(tensor.name == name for tensor in self.graph.initializer):
            self.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def _op(self, kind: str, given: list[str], **attributes: object) -> str:
        self._count += 1
        return self._add(kind, given, f"half/{kind}_{self._count}", **attributes)

    def _add(self, kind: str, given: list[str], output: str, **attributes: object) -> str:
        self._nodes.append(helper.make_node(kind, given, [output], **attributes))
        return output


def _gives_half(node: NodeProto, half: set[str]) -> bool:
    """Whether what a node gives is float16, by what it is given."""
    if node.op_type == "Cast":
        return any(attribute.name == "to" and attribute.i == FLOAT16 for attribute in node.attribute)
    if node.op_type in _OF_ANOTHER_TYPE:
        return False
    return node.input[0] in half


def _widened(name: str) -> str:
    return f"{name}/wide"


def _exact(name: str) -> str:
    return f"{name}/exact"
