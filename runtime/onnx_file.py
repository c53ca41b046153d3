"""What an .onnx file says, read without the onnx package: signature, operators, and where its weights lie.

ONNX is protobuf (https://protobuf.dev/programming-guides/encoding): a message is a run of fields, each a tag, which is
its number and a wire type, and a value. Numbers are those of onnx.proto (onnx/onnx, 1.19). Of every message only the
fields that the exporter writes are known; any other is refused, so that a graph has no subgraphs, functions, sparse
tensors or settings that nobody has looked at. Nothing is unpacked, nothing recurses, and each byte is seen once.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from salmonrun.runtime.manifest import TensorSpec

MAX_ONNX_BYTES = 32 * 2**20  # weights beside it not counted; a mixture of 6144 experts has 11 MiB
MAX_VALUES = 4096  # inputs or outputs of a graph
MAX_RANK = 8

VARINT, BYTES, FIXED32 = 0, 2, 5  # wire types
EXTERNAL = 1  # TensorProto.DataLocation
# TensorProto.DataType -> name, bytes of a value
DTYPES = {
    1: ("float32", 4), 2: ("uint8", 1), 3: ("int8", 1), 6: ("int32", 4), 7: ("int64", 8), 9: ("bool", 1),
    10: ("float16", 2),
}  # fmt: skip

Span = tuple[int, int]  # of bytes in the file


class OnnxFileError(ValueError):
    """Not an .onnx file, or not one that the exporter could have written."""


@dataclass(frozen=True)
class ExternalData:
    """Where a tensor's bytes lie."""

    tensor: str
    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class OnnxFile:
    """What is checked of a graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    domains: frozenset[str]  # of operator sets
    operators: frozenset[tuple[str, str]]  # (domain, kind)
    external: tuple[ExternalData, ...]
    heads: frozenset[int]  # that attention has, wherever it says so


class _Message:
    """Fields of a message, by tag."""

    def __init__(self, name: str, repeated: tuple[str, ...] = (), /, **fields: tuple[int, int]) -> None:
        self.name = name
        self.fields = {number << 3 | wire: field for field, (number, wire) in fields.items()}
        self.repeated = frozenset(repeated)


_MODEL = _Message(
    "ModelProto", ("opset_import",),
    ir_version=(1, VARINT), producer_name=(2, BYTES), producer_version=(3, BYTES), domain=(4, BYTES),
    model_version=(5, VARINT), doc_string=(6, BYTES), graph=(7, BYTES), opset_import=(8, BYTES),
)  # fmt: skip
_OPSET = _Message("OperatorSetIdProto", domain=(1, BYTES), version=(2, VARINT))
_GRAPH = _Message(
    "GraphProto", ("node", "initializer", "input", "output"),
    node=(1, BYTES), name=(2, BYTES), initializer=(5, BYTES), doc_string=(10, BYTES), input=(11, BYTES),
    output=(12, BYTES),
)  # fmt: skip
_NODE = _Message(
    "NodeProto", ("input", "output", "attribute"),
    input=(1, BYTES), output=(2, BYTES), name=(3, BYTES), op_type=(4, BYTES), attribute=(5, BYTES),
    doc_string=(6, BYTES), domain=(7, BYTES),
)  # fmt: skip
_ATTRIBUTE = _Message(
    "AttributeProto", ("floats", "ints", "strings"),
    name=(1, BYTES), f=(2, FIXED32), i=(3, VARINT), s=(4, BYTES), t=(5, BYTES), floats=(7, FIXED32), ints=(8, VARINT),
    strings=(9, BYTES), doc_string=(13, BYTES), type=(20, VARINT),
)  # fmt: skip
_TENSOR = _Message(
    "TensorProto", ("dims", "external_data"),
    dims=(1, VARINT), data_type=(2, VARINT), float_data=(4, BYTES), int32_data=(5, BYTES), int64_data=(7, BYTES),
    name=(8, BYTES), raw_data=(9, BYTES), doc_string=(12, BYTES), external_data=(13, BYTES), data_location=(14, VARINT),
)  # fmt: skip
_ENTRY = _Message("StringStringEntryProto", key=(1, BYTES), value=(2, BYTES))
_VALUE = _Message("ValueInfoProto", name=(1, BYTES), type=(2, BYTES), doc_string=(3, BYTES))
_TYPE = _Message("TypeProto", tensor_type=(1, BYTES))
_TENSOR_TYPE = _Message("TypeProto.Tensor", elem_type=(1, VARINT), shape=(2, BYTES))
_SHAPE = _Message("TensorShapeProto", ("dim",), dim=(1, BYTES))
_DIM = _Message("Dimension", dim_value=(1, VARINT), dim_param=(2, BYTES))


def read_onnx(content: bytes) -> OnnxFile:
    """Read a file's bytes.

    Raises:
        OnnxFileError: says what is wrong.
    """
    if len(content) > MAX_ONNX_BYTES:
        raise OnnxFileError(f"it has more than {MAX_ONNX_BYTES} bytes, weights beside it not counted")
    try:
        return _Reader(content).model()
    except UnicodeDecodeError as error:
        raise OnnxFileError(f"a name is not UTF-8 ({error.reason})") from error


class _Reader:
    """One method a message."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def model(self) -> OnnxFile:
        graph, domains = None, set()
        for field, _, span in self._fields((0, len(self._content)), _MODEL):
            if field == "graph":
                graph = span
            elif field == "opset_import":
                domains.add(self._strings(span, _OPSET).get("domain", ""))
        if graph is None:
            raise OnnxFileError("it has no graph")
        return self._graph(graph, frozenset(domains))

    def _graph(self, graph: Span, domains: frozenset[str]) -> OnnxFile:
        values: dict[str, list[TensorSpec]] = {"input": [], "output": []}
        operators: set[tuple[str, str]] = set()
        heads: set[int] = set()
        external: list[ExternalData] = []
        for field, _, span in self._fields(graph, _GRAPH):
            if field == "node":
                operators.add(self._node(span, heads))
            elif field == "initializer":
                external += self._tensor(span)
            elif field in values:
                values[field].append(self._value(span))
                if len(values[field]) > MAX_VALUES:
                    raise OnnxFileError(f"it has more than {MAX_VALUES} {field}s")
        inputs, outputs = (tuple(specs) for specs in values.values())
        return OnnxFile(inputs, outputs, domains, frozenset(operators), tuple(external), frozenset(heads))

    def _node(self, node: Span, heads: set[int]) -> tuple[str, str]:
        """(domain, kind); how many heads it has is added to these."""
        domain = kind = ""
        for field, _, span in self._fields(node, _NODE):
            if field == "op_type":
                kind = self._text(span)
            elif field == "domain":
                domain = self._text(span)
            elif field == "attribute":
                self._attribute(span, heads)
        return domain, kind

    def _attribute(self, attribute: Span, heads: set[int]) -> None:
        name, number = "", 0
        for field, value, span in self._fields(attribute, _ATTRIBUTE):
            if field == "name":
                name = self._text(span)
            elif field == "i":
                number = value
            elif field == "t" and self._tensor(span):
                raise OnnxFileError("an attribute's tensor lies in another file")
        if name == "num_heads":
            heads.add(number)

    def _tensor(self, tensor: Span) -> list[ExternalData]:
        """Where its bytes lie, if not in this file."""
        name, dtype, location, dims, entries = "", 0, 0, [], {}
        for field, number, span in self._fields(tensor, _TENSOR):
            if field == "name":
                name = self._text(span)
            elif field == "data_type":
                dtype = number
            elif field == "data_location":
                location = number
            elif field == "dims":
                dims.append(number)
                _check_dims(dims)
            elif field == "external_data":
                entry = self._strings(span, _ENTRY)
                if entry.get("key", "") in entries:
                    raise OnnxFileError(f"tensor {name!r} has {entry.get('key')!r} twice")
                entries[entry.get("key", "")] = entry.get("value", "")
        if location == EXTERNAL:
            return [_external(name, dtype, dims, entries)]
        if location or entries:
            raise OnnxFileError(f"tensor {name!r} has data_location {location} and {len(entries)} external entries")
        return []

    def _value(self, value: Span) -> TensorSpec:
        parts = {field: span for field, _, span in self._fields(value, _VALUE)}
        name = self._text(parts.get("name", (0, 0)))
        kind = {field: span for field, _, span in self._fields(parts.get("type", (0, 0)), _TYPE)}
        dtype, shape = 0, None
        for field, number, span in self._fields(kind.get("tensor_type", (0, 0)), _TENSOR_TYPE):
            if field == "elem_type":
                dtype = number
            else:
                shape = span
        if dtype not in DTYPES or shape is None:
            raise OnnxFileError(f"{name!r} has no shape, or values of type {dtype}")
        dims = tuple(self._dim(span) for _, _, span in self._fields(shape, _SHAPE))
        _check_dims([dim if isinstance(dim, int) else 0 for dim in dims])
        return TensorSpec(name, DTYPES[dtype][0], dims)

    def _dim(self, dim: Span) -> int | str:
        found: list[int | str] = [
            number if field == "dim_value" else self._text(span) for field, number, span in self._fields(dim, _DIM)
        ]
        if len(found) != 1:
            raise OnnxFileError("a dimension is neither a number nor a name")
        return found[0]

    def _strings(self, message: Span, kind: _Message) -> dict[str, str]:
        """Fields of a message that are text."""
        return {field: self._text(span) for field, _, span in self._fields(message, kind) if span != (0, 0)}

    def _text(self, span: Span) -> str:
        return self._content[slice(*span)].decode()

    def _fields(self, message: Span, kind: _Message) -> Iterator[tuple[str, int, Span]]:
        """Field by field: its name, its number if it is a varint, else where its bytes are."""
        content, known, repeated, seen = self._content, kind.fields, kind.repeated, set()
        at, end = message
        while at < end:
            start, tag = at, content[at]
            at += 1
            if tag & 128:  # a number above 15 has two bytes
                tag = tag & 127 | (content[at] << 7 if at < end else 0)
                at += 1
            field = known.get(tag)
            if field is None or (field in seen and field not in repeated):
                what = f"field {tag >> 3} (wire type {tag & 7})" if field is None else f"{field} twice"
                raise OnnxFileError(f"byte {start}: {what} of {kind.name} is nothing that the exporter writes")
            seen.add(field)
            if tag & 7 == VARINT:
                number, at = self._varint(at, end)
                yield field, number, (0, 0)
                continue
            length = 4
            if tag & 7 == BYTES:
                length, at = self._varint(at, end)
            if length > end - at:
                raise OnnxFileError(f"byte {start}: {field} of {kind.name} is cut off")
            yield field, 0, (at, at + length)
            at += length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """A number of up to 64 bits, 7 a byte, and the place behind it."""
        content, number, shift = self._content, 0, 0
        while at < end and shift < 64:
            byte = content[at]
            at += 1
            number |= (byte & 127) << shift
            if byte < 128:
                if number >> 64:
                    break
                return number, at
            shift += 7
        raise OnnxFileError(f"byte {at}: a number is cut off or has more than 64 bits")


def _check_dims(dims: list[int]) -> None:
    if len(dims) > MAX_RANK or any(dim >= 2**31 for dim in dims):  # a negative one has all 64 bits
        raise OnnxFileError(f"dimensions {dims[:MAX_RANK]} are too many, too large or negative")


def _external(name: str, dtype: int, dims: list[int], entries: dict[str, str]) -> ExternalData:
    if entries.keys() != {"location", "offset", "length"} or dtype not in DTYPES:
        raise OnnxFileError(f"tensor {name!r} of type {dtype} lies at {sorted(entries)}")
    numbers = [entries[key] for key in ("offset", "length")]
    if not all(number.isascii() and number.isdigit() and len(number) < 20 for number in numbers):
        raise OnnxFileError(f"tensor {name!r} lies at offset {numbers[0][:30]!r}, length {numbers[1][:30]!r}")
    offset, length = map(int, numbers)
    if length != math.prod(dims) * DTYPES[dtype][1]:
        raise OnnxFileError(f"tensor {name!r} is {dims} of {DTYPES[dtype][0]}, but has {length} bytes")
    return ExternalData(name, entries["location"], offset, length)
