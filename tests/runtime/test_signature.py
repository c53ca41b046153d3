"""A manifest that agrees with its hashes but not with its graphs is refused when the bundle is opened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from salmonrun.runtime import Engine
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import BundleError
from salmonrun.runtime.signature import GRAPHS
from tests.helpers.damage import add_file, reseal

pytestmark = pytest.mark.onnx  # whose files are damaged here


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime must not see any of these graphs."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a session was created")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)


def edit_graph(bundle: Path, name: str, edit: Callable[[onnx.ModelProto], Any]) -> None:
    model = onnx.load(bundle / name, load_external_data=False)
    edit(model)
    add_file(bundle, name, model.SerializeToString())


def refused(bundle: Path, message: str) -> None:
    """By the engine, too, whether it verifies hashes or not."""
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)
    with pytest.raises(BundleError, match=message):
        Engine.load(bundle, verify=False)


def external(model: onnx.ModelProto) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL)


def lies(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    """Change where the first external tensor lies."""

    def edit(model: onnx.ModelProto) -> None:
        (entry,) = (entry for entry in external(model).external_data if entry.key == key)
        entry.value = value

    return edit


def first_dim(model: onnx.ModelProto) -> Any:
    return model.graph.input[0].type.tensor_type.shape.dim


# The graph's file


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda model: setattr(model.graph.input[0], "name", "mel"), r"has inputs mel .*; bundle\.json says log_mel"),
        (
            lambda model: setattr(first_dim(model)[1], "dim_value", 128),
            r"log_mel .*\[1, 128, .* says .* \[1, 80,",
        ),
        (lambda model: setattr(first_dim(model)[2], "dim_value", 9), r"log_mel float32 \[1, 80, 9\]"),
        (lambda model: setattr(first_dim(model)[2], "dim_param", "T"), r"\[1, 80, 'T'\].* says .*'mel_frames'"),
        (lambda model: first_dim(model).pop(), r"log_mel float32 \[1, 80\]"),
        (lambda model: first_dim(model).add(dim_value=1), r"log_mel float32 \[1, 80, 'mel_frames', 1\]"),
        (lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 10), "log_mel float16"),
        (lambda model: model.graph.input.pop(), r"has inputs in another order; bundle\.json says log_mel"),
        (lambda model: model.graph.input.append(model.graph.output[0]), "has inputs speech"),
        (lambda model: model.graph.output.append(model.graph.input[0]), "has outputs log_mel"),
        (lambda model: setattr(model.graph.node[0], "op_type", "ReverseSequence"), "operator 'ReverseSequence' of dom"),
        (lambda model: setattr(model.graph.node[0], "domain", "com.microsoft"), "operator 'Conv' of domain 'com.micr"),
        (lambda model: setattr(model.graph.node[0], "domain", "ai.onnx"), "operator 'Conv' of domain 'ai.onnx'"),
        (lambda model: setattr(model.graph.node[0], "op_type", "PyOp"), "operator 'PyOp'"),
        (lambda model: model.opset_import.append(helper.make_opsetid("evil", 1)), r"operator sets \['evil'\]"),
        (lies("location", "/etc/passwd"), r"lies in '/etc/passwd'; it must lie in 'whisper\.onnx\.data'"),
        (lies("location", "../whisper.onnx.data"), r"lies in '\.\./whisper\.onnx\.data'"),
        (lies("location", "./whisper.onnx.data"), r"lies in '\./whisper\.onnx\.data'"),
        (lies("location", "qformer.onnx.data"), r"lies in 'qformer\.onnx\.data'"),
        (lies("location", "*/_ORT_MEM_ADDR_/*"), "lies in '.*MEM_ADDR"),  # ONNX Runtime's: the offset is an address
        (lies("location", ""), "lies in ''"),
        (lies("offset", str(2**40)), r"ends at byte \d+ of whisper\.onnx\.data, which has \d+"),
        (lies("offset", str(2**63)), "ends at byte"),
        (
            lambda model: external(model).ClearField("external_data"),
            r"whisper\.onnx cannot be run: .* export",
        ),
    ],
)
def test_whisper_that_is_not_what_the_manifest_says(
    bundle: Path, edit: Callable[[onnx.ModelProto], Any], message: str
) -> None:
    edit_graph(bundle, "whisper.onnx", edit)
    refused(bundle, message)


def test_a_graph_in_a_folder_names_its_data_without_it(bundle: Path) -> None:
    edit_graph(bundle, "llm/decoder.onnx", lies("location", "llm/decoder.onnx.data"))
    refused(bundle, r"lies in 'llm/decoder\.onnx\.data'; it must lie in 'decoder\.onnx\.data'")


def test_weights_that_are_gone_with_their_entry(bundle: Path) -> None:
    (bundle / "whisper.onnx.data").unlink()
    reseal(bundle, lambda data: data["files"].pop("whisper.onnx.data"))
    refused(bundle, r"ends at byte \d+ of whisper\.onnx\.data, which has 0")


def test_weights_that_are_cut_with_their_entry(bundle: Path) -> None:
    add_file(bundle, "qformer.onnx.data", (bundle / "qformer.onnx.data").read_bytes()[:-1])
    refused(bundle, r"qformer\.onnx: tensor .* ends at byte")


def test_a_name_that_makes_onnxruntime_read_another_format(bundle: Path) -> None:
    (bundle / "qformer.onnx").rename(bundle / "qformer.ort")
    (bundle / "qformer.onnx.data").rename(bundle / "qformer.ort.data")

    def change(data: dict[str, Any]) -> None:
        data["graphs"]["qformer"]["file"] = "qformer.ort"
        for end in ("", ".data"):
            data["files"][f"qformer.ort{end}"] = data["files"].pop(f"qformer.onnx{end}")

    reseal(bundle, change)
    refused(bundle, r"qformer\.ort is used as a graph; its name must end in \.onnx")


# The manifest, against what the engine calls


def set_in(data: dict[str, Any], graph: str, kind: str, tensor: str, **changes: Any) -> None:
    (spec,) = (spec for spec in data["graphs"][graph][kind] if spec["name"] == tensor)
    spec.update(changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: set_in(d, "qformer", "inputs", "speech", name="talk"), "inputs of qformer: talk .*no such tensor"),
        (lambda d: set_in(d, "qformer", "inputs", "speech", dims=[1, "frames", 9]), r"qformer: speech .*9\].* 64\]"),
        (lambda d: set_in(d, "qformer", "outputs", "audio_embeds", dims=[1, "n", 9]), r"audio_embeds .*9\].* 64\]"),
        (
            lambda d: set_in(d, "qformer", "outputs", "audio_embeds", dims=[1, 5, 64]),
            r"audio_embeds .*\[1, 5, 64",
        ),
        (lambda d: set_in(d, "whisper", "outputs", "speech", dims=[]), "whisper: speech .*expected .*'frames', 0"),
        (lambda d: set_in(d, "whisper", "outputs", "speech", name="s"), "outputs of whisper: s .*no such tensor"),
        (lambda d: set_in(d, "whisper", "inputs", "log_mel", dtype="float16"), "log_mel float16 .*expected .*float32"),
        (lambda d: set_in(d, "llm", "inputs", "seqlens_k", dtype="int64"), "seqlens_k int64"),
        (lambda d: set_in(d, "llm", "outputs", "logits", dims=["b", "l", 9]), r"logits .* 9\].* 258\]"),
        (lambda d: d["graphs"]["llm"]["outputs"].clear(), "outputs of llm: logits .* is missing"),
        (
            lambda d: d["graphs"]["llm"]["inputs"].append(d["graphs"]["llm"]["inputs"][0]),
            "inputs_embeds .*no such tensor",
        ),
        (lambda d: d["graphs"]["whisper"]["outputs"].clear(), "outputs of whisper: speech .* is missing"),
    ],
)
def test_a_graph_that_the_engine_cannot_call(bundle: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    reseal(bundle, edit)
    refused(bundle, message)


# The draft


def draft(bundle: Path, output: str = "draft_logits", symbols: int = 257) -> None:
    """A CTC head that knows nothing, described as it is."""
    speech = helper.make_tensor_value_info("speech", TensorProto.FLOAT, [1, "frames", 64])
    logits = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, "frames", symbols])
    head = helper.make_tensor("head", TensorProto.FLOAT, [64, symbols], bytes(4 * 64 * symbols), raw=True)
    node = helper.make_node("MatMul", ["speech", "head"], [output])
    graph = helper.make_graph([node], "draft", [speech], [logits], [head])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    add_file(bundle, "draft.onnx", model.SerializeToString())
    inputs = [{"name": "speech", "dtype": "float32", "dims": [1, "frames", 64]}]
    outputs = [{"name": output, "dtype": "float32", "dims": [1, "frames", symbols]}]
    spec = {"file": "draft.onnx", "inputs": inputs, "outputs": outputs}
    reseal(bundle, lambda data: data["graphs"].update(draft=spec))


def test_a_bundle_may_have_a_draft(bundle: Path) -> None:
    draft(bundle)
    assert set(open_bundle(bundle).manifest.graphs) == set(GRAPHS)


@pytest.mark.parametrize(("output", "symbols"), [("logits", 257), ("draft_logits", 256)])
def test_drafts_of_another_signature(bundle: Path, output: str, symbols: int) -> None:
    draft(bundle, output, symbols)
    refused(bundle, f"outputs of draft: {output} .*{symbols}")
