"""The reader of .onnx files: what it reads is what the onnx package reads, and anything else is its own error."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from salmonrun.runtime.onnx_file import MAX_ONNX_BYTES, ExternalData, OnnxFileError, read_onnx
from tests.helpers.onnx_files import read_with_onnx, small_model


def test_what_is_read() -> None:
    found = read_onnx(small_model().SerializeToString())
    assert [(spec.name, spec.dtype, spec.dims) for spec in found.inputs] == [("x", "float32", ("batch", 2))]
    assert [(spec.name, spec.dtype, spec.dims) for spec in found.outputs] == [("y", "float32", ("batch", 3))]
    assert found.domains == {"", "com.microsoft"}
    assert found.operators == {
        ("", "MatMul"),
        ("", "Add"),
        ("com.microsoft", "QuickGelu"),
        ("", "Transpose"),
        ("", "Reshape"),
    }
    assert found.external == (ExternalData("w", "small.onnx.data", 4096, 24),)


# Equal reading or our error


def agrees(content: bytes) -> bool:
    """Whether it is read, and then as onnx reads it."""
    try:
        found = read_onnx(content)
    except OnnxFileError:
        return False
    assert found == read_with_onnx(content)
    return True


def test_every_flipped_bit() -> None:
    content = small_model().SerializeToString()
    accepted = 0
    for position in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            accepted += agrees(bytes(changed))
    assert 0.1 < accepted / (8 * len(content)) < 0.9  # names and numbers may be any; tags and lengths may not


@pytest.mark.parametrize("byte", [0x00, 0x01, 0x7F, 0x80, 0x81, 0xFF])
def test_every_byte_replaced_left_out_or_preceded(byte: int) -> None:
    content = small_model().SerializeToString()
    new = bytes([byte])
    for position in range(len(content)):
        agrees(content[:position] + new + content[position + 1 :])
        agrees(content[:position] + content[position + 1 :])
        agrees(content[:position] + new + content[position:])
        agrees(content[:position])


@pytest.mark.onnx
@given(data=st.data())
@settings(max_examples=400)
def test_mutated_graphs(tiny_bundle: Path, data: st.DataObject) -> None:
    content = (tiny_bundle / data.draw(st.sampled_from(["llm/decoder.onnx", "whisper.onnx"]))).read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(start + 40, len(content))))
        source = data.draw(st.integers(0, len(content)))
        new = data.draw(st.binary(max_size=12) | st.just(content[source : source + 60]))
        content = content[:start] + new + content[end:]
    agrees(content)


@given(st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    agrees(content)


# What the exporter does not write


def edited(edit: Callable[[onnx.ModelProto], Any]) -> bytes:
    model = small_model()
    edit(model)
    return model.SerializeToString()


def entry(model: onnx.ModelProto, key: str, value: str) -> None:
    """Change one entry of where w lies."""
    (found,) = (entry for entry in model.graph.initializer[0].external_data if entry.key == key)
    found.value = value


def first_dims(model: onnx.ModelProto) -> Any:
    return model.graph.input[0].type.tensor_type.shape.dim


def body() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "body", [], [])


def sparse() -> onnx.SparseTensorProto:
    values = helper.make_tensor("values", TensorProto.FLOAT, [1], [1.0])
    return helper.make_sparse_tensor(values, helper.make_tensor("indices", TensorProto.INT64, [1], [0]), [4])


def function() -> onnx.FunctionProto:
    node = helper.make_node("Identity", ["a"], ["b"])
    return helper.make_function("", "Gelu", ["a"], ["b"], [node], [helper.make_opsetid("", 21)])


def external_attribute(model: onnx.ModelProto) -> None:
    value = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", "/etc/passwd"), ("offset", "0"), ("length", "4")):
        value.external_data.add(key=key, value=text)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["c"], value=value))


def with_attribute(**attribute: Any) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.node.append(helper.make_node("Identity", ["x"], ["z"], **attribute))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda model: model.functions.append(function()), r"field 25 .* of ModelProto"),
        (lambda model: model.metadata_props.add(key="ort_config", value="{}"), r"field 14 .* of ModelProto"),
        (lambda model: model.training_info.add(), r"field 20 .* of ModelProto"),
        (with_attribute(then_branch=body()), r"field 6 .* of AttributeProto"),
        (with_attribute(branches=[body()]), r"field 11 .* of AttributeProto"),
        (with_attribute(value=sparse()), r"field 22 .* of AttributeProto"),
        (external_attribute, "an attribute's tensor lies in another file"),
        (lambda model: model.graph.sparse_initializer.append(sparse()), r"field 15 .* of GraphProto"),
        (lambda model: model.graph.ClearField("input") or model.ClearField("graph"), "it has no graph"),
        (lambda model: entry(model, "offset", "-4096"), "lies at offset '-4096'"),
        (lambda model: entry(model, "offset", "+4096"), r"lies at offset '\+4096'"),
        (lambda model: entry(model, "offset", " 4096"), "lies at offset ' 4096'"),
        (lambda model: entry(model, "offset", "\u0664"), "lies at offset '\u0664'"),  # a digit, but not ours
        (lambda model: entry(model, "offset", "9" * 5000), "lies at offset '9999"),
        (lambda model: entry(model, "length", "23"), r"\[2, 3\] of float32, but has 23 bytes"),
        (lambda model: model.graph.initializer[0].dims.append(2), r"\[2, 3, 2\] of float32, but has 24 bytes"),
        (lambda model: model.graph.initializer[0].dims.append(-1), "too large or negative"),
        (lambda model: model.graph.initializer[0].dims.extend([1] * 7), "too many"),
        (lambda model: model.graph.initializer[0].external_data.add(key="checksum"), "'checksum'"),
        (lambda model: model.graph.initializer[0].external_data.add(key="offset", value="0"), "'offset' twice"),
        (lambda model: model.graph.initializer[0].ClearField("external_data"), r"lies at \[\]"),
        (lambda model: setattr(model.graph.initializer[0], "data_type", 8), "of type 8"),  # strings
        (
            lambda model: model.graph.initializer[1].external_data.add(key="location", value="x"),
            "'b' has data",
        ),
        (lambda model: model.graph.input[0].type.ClearField("tensor_type"), "'x' has no shape"),
        (lambda model: model.graph.input[0].type.tensor_type.ClearField("shape"), "'x' has no shape"),
        (lambda model: model.graph.input[0].type.sequence_type.elem_type.SetInParent(), "of TypeProto"),
        (lambda model: model.graph.input[0].type.tensor_type.shape.dim.add(), "neither a number nor a name"),
        (lambda model: [first_dims(model).add(dim_param="n") for _ in range(7)], "too many"),
        (lambda model: model.graph.input.extend([model.graph.input[0]] * 4096), "more than 4096 inputs"),
    ],
)
def test_what_the_exporter_does_not_write(edit: Callable[[onnx.ModelProto], Any], message: str) -> None:
    with pytest.raises(OnnxFileError, match=message):
        read_onnx(edited(edit))


# What no writer of protobuf writes


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + length(content) + content


def length(content: bytes) -> bytes:
    size, found = len(content), b""
    while size > 127:
        found += bytes([size & 127 | 128])
        size >>= 7
    return found + bytes([size])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has no graph"),
        (b"nonsense", r"byte 0: field 13 \(wire type 6\) of ModelProto"),
        (b"\x08", "a number is cut off"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "more than 64 bits"),
        (b"\x08" + b"\xff" * 9 + b"\x7f", "more than 64 bits"),
        (b"\x3a\x05abc", "graph of ModelProto is cut off"),
        (b"\x3a" + b"\xff" * 9 + b"\x01", "graph of ModelProto is cut off"),
        (b"\x3b", r"field 7 \(wire type 3\)"),  # a group, which may nest without end
        (field(7, b"") + field(7, b""), "graph twice of ModelProto"),
        (field(7, field(1, field(4, b"\xff"))), "not UTF-8"),
        (field(7, field(5, b"\x0a\x02\x01\x01")), r"field 1 \(wire type 2\) of TensorProto"),  # packed
        (b"\x80", "field 0"),
    ],
)
def test_broken_encodings(content: bytes, message: str) -> None:
    with pytest.raises(OnnxFileError, match=message):
        read_onnx(content)


def test_groups_within_groups() -> None:
    with pytest.raises(OnnxFileError):
        read_onnx(b"\x3b" * 10**6)
    with suppress(DecodeError):
        read_with_onnx(b"\x3b" * 10**6)


def test_messages_within_messages_end_at_what_is_known() -> None:
    content = b"x"
    for _ in range(2000):
        content = field(7, content)
    with pytest.raises(OnnxFileError, match="GraphProto"):
        read_onnx(content)


@pytest.mark.parametrize("piece", [field(1, b""), field(5, b""), b"\x0a\x00"])
def test_a_file_full_of_small_things(piece: bytes) -> None:
    """In time that grows with the file, and no faster."""
    found = read_onnx(field(7, piece * (2**21 // len(piece))))
    assert len(found.operators) <= 1
    assert not found.external


def test_a_huge_file_is_not_read() -> None:
    with pytest.raises(OnnxFileError, match=f"more than {MAX_ONNX_BYTES} bytes"):
        read_onnx(bytes(MAX_ONNX_BYTES + 1))
