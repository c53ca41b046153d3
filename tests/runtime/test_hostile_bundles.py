"""Bundles whose hashes are right and that agree with themselves, but not with a model: refused, by an error of ours."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import BundleError, ResourceError
from salmonrun.runtime.golden import GOLDEN, check
from salmonrun.runtime.session import running
from tests.helpers.damage import add_file, reseal

Manifest = dict[str, Any]


# Numbers and texts that no model has


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("audio", "max_s", 1e9, "must satisfy 0 < min_s <= max_s <= 600"),
        ("audio", "log_mel_max", float("nan"), "log_mel_max is nan"),
        ("fbank", "mean", float("inf"), "mean is inf"),
        ("fbank", "scale", 1e-300, "scale is 1e-300"),
        ("fbank", "waveform_scale", float("inf"), "waveform_scale is inf"),
        ("fbank", "patch_frames", 2**40, f"patch_frames is {2**40}; expected 1 to 65536"),
        ("window", "num_queries", 2**62, f"num_queries is {2**62}; expected 1 to 65536"),
        ("window", "stride", 2**62, f"stride is {2**62}"),
        ("prompt", "template", "USER: {} <SpeechHere>", "no <SpeechHere>, which a prompt brings"),
        ("prompt", "template", "USER: {}\ud800", "prompt.template: .* is not valid Unicode"),
        ("prompt", "end_symbol", "\udfff", "prompt.end_symbol: .* is not valid Unicode"),
        (
            "prompt",
            "tasks",
            {"asr": ["<SpeechHere><SpeechHere>"]},
            "task 'asr' has the prompt .* at most one <SpeechHer",
        ),
        ("prompt", "tasks", {"asr": [" "]}, "task 'asr' has the prompt ' '; expected some text"),
        ("prompt", "tasks", {"\ud800": ["Say it."]}, "prompt.tasks: .* is not valid Unicode"),
    ],
)
def test_manifests_that_no_model_has(bundle: Path, section: str, key: str, value: Any, message: str) -> None:
    reseal(bundle, lambda data: data[section].update({key: value}))
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle, verify=False)


@pytest.mark.onnx
def test_heads_that_the_graph_does_not_have(bundle: Path) -> None:
    def more(data: dict[str, Any]) -> None:
        data["llm"]["heads"] *= 2

    reseal(bundle, more)
    with pytest.raises(BundleError, match=r"decoder\.onnx has \[2\] heads, bundle\.json says 4"):
        open_bundle(bundle, verify=False)


# Tokenizers of another LLM


@pytest.mark.parametrize("token_id", [258, 2**31])
def test_a_tokenizer_whose_ids_are_beyond_the_embeddings(bundle: Path, token_id: int) -> None:
    data = json.loads((bundle / "tokenizer.json").read_text())
    word = next(iter(data["model"]["vocab"]))
    data["model"]["vocab"][word] = token_id
    add_file(bundle, "tokenizer.json", json.dumps(data).encode())
    with pytest.raises(BundleError, match=rf"tokenizer\.json has token {token_id}, the LLM 258 tokens"):
        Engine.load(bundle)


# Graphs that cannot be computed


def test_a_graph_that_fails_when_it_is_run(bundle: Path, speech: Path) -> None:
    """ONNX Runtime's own exceptions are in no error tree."""
    model = onnx.load(bundle / "qformer.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "Reshape")
    constant = numpy_helper.from_array(np.array([7, 11, 13], np.int64), "hostile")
    model.graph.initializer.append(constant)
    node.input[1] = "hostile"
    add_file(bundle, "qformer.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match=r"qformer.* (cannot be computed|cannot be loaded) by onnxruntime"):
        Engine.load(bundle).generate(speech, config=GenerationConfig(max_new_tokens=2))


def test_a_graph_that_gives_another_shape(bundle: Path, speech: Path) -> None:
    """What it declares is what the manifest says, and it computes something else."""
    model = onnx.load(bundle / "qformer.onnx", load_external_data=False)
    result = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["inner" if name == result else name for name in node.output]
    axes = numpy_helper.from_array(np.array([2], np.int64), "axes")
    model.graph.initializer.append(axes)
    model.graph.node.append(onnx.helper.make_node("ReduceSum", ["inner", "axes"], ["summed"], keepdims=1))
    model.graph.node.append(onnx.helper.make_node("Identity", ["summed"], [result]))
    add_file(bundle, "qformer.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match=r"qformer"):
        Engine.load(bundle).generate(speech, config=GenerationConfig(max_new_tokens=2))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("bad allocation"), RuntimeError("std::bad_alloc")])
def test_memory_that_runs_out_in_a_graph(error: Exception) -> None:
    with pytest.raises(ResourceError, match="there is no memory to compute graph llm"), running("llm"):
        raise error


# Golden runs


@pytest.fixture(scope="module")
def spare(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Its golden run is read by every check, and may be replaced."""
    return Engine.load(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("spare") / "bundle"))


def refused(engine: Engine, content: bytes, message: str) -> None:
    (engine.bundle.folder / GOLDEN).write_bytes(content)
    with pytest.raises(BundleError, match=message):
        check(engine)


def packed(arrays: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def test_the_golden_run_that_was_exported(tiny_bundle: Path, spare: Engine) -> None:
    """Else the refusals below would prove nothing."""
    with np.load(tiny_bundle / GOLDEN) as file:
        (spare.bundle.folder / GOLDEN).write_bytes(packed(dict(file)))
    assert check(spare).passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.update(tolerance=np.float32(np.nan)), "tolerance has numbers that are not finite"),
        (lambda arrays: arrays.update(tolerance=np.float32(np.inf)), "tolerance has numbers that are not finite"),
        (lambda arrays: arrays.update(tolerance=np.float32(1e6)), r"tolerates 1e\+06; at most .* is credible"),
        (
            lambda arrays: arrays.update(tokens=np.array([2**40])),
            r"logit_ids is int64 .*, expected int64 of at most \[1, 32\]",
        ),
        (lambda arrays: arrays.update(tokens=arrays["tokens"] + 2**40), "tokens are .*; the LLM has 258"),
        (lambda arrays: arrays.update(logit_ids=arrays["logit_ids"] - 500), "logit_ids are .*; the LLM has 258"),
        (
            lambda arrays: arrays.update(tokens=arrays["tokens"][:0]),
            r"logit_ids is int64 .*, expected int64 of at most \[0, 32\]",
        ),
        (lambda arrays: arrays.update(tokens=arrays["tokens"].astype("f8")), "tokens is float64 .*, expected int64"),
        (lambda arrays: arrays.update(pcm=np.zeros((2, 9), np.float32)), r"pcm is float32 \[2, 9\], expected"),
        (lambda arrays: arrays.update(pcm=np.zeros(10**7, np.float32)), r"pcm is float32 \[10000000\], expected"),
        (
            lambda arrays: arrays.update(pcm=np.zeros(17 * 2**20, np.float32)),
            r"unpacks to 6 arrays of 713\d+ bytes; at most",
        ),
        (lambda arrays: arrays.update(prompt=np.array([255], np.uint8)), "prompt is not UTF-8"),
        (lambda arrays: arrays.update(prompt=np.array(["x"])), "expected numbers, row by row"),
        (lambda arrays: arrays.update(prompt=np.array([{}])), "expected numbers, row by row"),
        (lambda arrays: arrays.pop("logits"), "has no array 'logits'"),
        (lambda arrays: arrays.update({f"x{i}": np.zeros(1) for i in range(99)}), "unpacks to 105 arrays"),
    ],
)
def test_golden_runs_that_cannot_be(
    tiny_bundle: Path, spare: Engine, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with np.load(tiny_bundle / GOLDEN) as file:
        arrays = dict(file)
    change(arrays)
    refused(spare, packed(arrays), message)


def test_a_golden_run_that_claims_more_than_it_has(spare: Engine) -> None:
    """Before anything of that size is asked for."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 16)}".ljust(117) + b"\n"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("pcm.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    refused(spare, content.getvalue(), r"cannot be read: an array is \[1099511627776, 16\] of float32, but has 0 bytes")


@pytest.mark.parametrize("damage", [b"", b"PK", b"nonsense" * 99])
def test_a_golden_run_that_is_no_archive(spare: Engine, damage: bytes) -> None:
    refused(spare, damage, r"golden\.npz cannot be read")


def test_a_golden_run_with_a_flipped_byte(tiny_bundle: Path, spare: Engine) -> None:
    content = bytearray((tiny_bundle / GOLDEN).read_bytes())
    content[len(content) // 3] ^= 16
    refused(spare, bytes(content), r"golden\.npz cannot be read")
