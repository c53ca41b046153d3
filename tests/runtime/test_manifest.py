"""A manifest that is damaged or cannot be followed is refused, and the error says what is wrong with it."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from salmonrun.runtime import Engine
from salmonrun.runtime.bundle import MAX_MANIFEST_BYTES, file_sha256, open_bundle
from salmonrun.runtime.errors import BundleError, BundleIntegrityError, BundleVersionError
from salmonrun.runtime.manifest import FORMAT_VERSION, MANIFEST, OnnxWeights, manifest_bytes, manifest_hash
from tests.helpers.damage import add_file, flipped, manifest_data, reseal, sealed

pytestmark = pytest.mark.onnx  # whose files are damaged here


@pytest.fixture(scope="module")
def spare(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose manifest is damaged and mended again."""
    return Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("spare") / "bundle"))


@contextmanager
def content(path: Path, data: bytes) -> Iterator[None]:
    """The file has this content for a while."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


# What is right


def test_manifest_round_trip(tiny_bundle: Path) -> None:
    stored = (tiny_bundle / MANIFEST).read_bytes()
    manifest = open_bundle(tiny_bundle).manifest
    assert manifest.manifest_sha256 == manifest_hash(stored)
    assert manifest_bytes(manifest) == stored
    assert manifest_bytes(replace(manifest, manifest_sha256="")) == stored


def test_manifest_hash_covers_everything_but_itself(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    stored = manifest_bytes(manifest)
    assert manifest_hash(stored.replace(manifest.manifest_sha256.encode(), b"f" * 64)) == manifest.manifest_sha256
    assert manifest_hash(stored + b" ") != manifest.manifest_sha256


def test_a_resealed_manifest_is_accepted(bundle: Path) -> None:
    """Else the refusals below would prove nothing."""
    reseal(bundle, lambda data: data["provenance"].update(model="another name"))
    assert open_bundle(bundle).manifest.provenance.model == "another name"


# Damaged bytes


def test_flipped_byte_anywhere_in_the_manifest(spare: Path) -> None:
    stored = (spare / MANIFEST).read_bytes()
    for position in range(0, len(stored), 13):
        with content(spare / MANIFEST, flipped(stored, position, 1 << position % 8)):
            with pytest.raises(BundleError) as caught:
                open_bundle(spare, verify=False)
            assert MANIFEST in str(caught.value), position


def test_any_digit_of_the_manifests_own_hash(spare: Path) -> None:
    stored = (spare / MANIFEST).read_bytes()
    start = stored.index(manifest_hash(stored).encode())
    for position in range(start, start + 64):
        with content(spare / MANIFEST, flipped(stored, position)), pytest.raises(BundleIntegrityError, match=MANIFEST):
            open_bundle(spare, verify=False)


# Manifests that must not be followed


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("gone", "gone does not exist; make one with salmonrun export"),
        ("file", "file is a file; expected the folder that salmonrun export has made"),
    ],
)
def test_not_a_folder(tmp_path: Path, folder: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path / folder)


def test_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleIntegrityError, match=r"has no bundle\.json"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("stored", [b"", b"not JSON", b"{", b"\xff\xfe\x00", b'{"a": 1}}', b"\x00" * 100])
def test_manifest_that_is_not_json(bundle: Path, stored: bytes) -> None:
    (bundle / MANIFEST).write_bytes(stored)
    with pytest.raises(BundleIntegrityError, match=r"bundle\.json is not JSON"):
        open_bundle(bundle)


@pytest.mark.parametrize("stored", [b"[" * 100_000, b'{"a":' * 100_000], ids=["lists", "objects"])
def test_manifest_nested_without_end(bundle: Path, stored: bytes) -> None:
    (bundle / MANIFEST).write_bytes(stored)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        open_bundle(bundle)


def test_huge_manifest_is_not_read(bundle: Path) -> None:
    os.truncate(bundle / MANIFEST, MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleIntegrityError, match=f"{MAX_MANIFEST_BYTES + 1} bytes; at most {MAX_MANIFEST_BYTES}"):
        open_bundle(bundle)


@pytest.mark.parametrize("stored", ["[]", "1", "null", "{}", '{"format_version": "1"}', '{"format_version": null}'])
def test_manifest_without_a_format_version(bundle: Path, stored: str) -> None:
    (bundle / MANIFEST).write_text(stored)
    with pytest.raises(BundleError, match=r"bundle\.json has no format_version"):
        open_bundle(bundle)


def test_newer_format_is_told_apart_from_damage(bundle: Path) -> None:
    reseal(bundle, lambda data: data.update(format_version=FORMAT_VERSION + 1, something="new"))
    with pytest.raises(BundleVersionError, match=r"format_version 5, this salmonrun reads 4: update salmonrun"):
        open_bundle(bundle)


@pytest.mark.parametrize("version", [3, 2, 1, 0, -1])
def test_older_and_impossible_formats_are_to_be_exported_again(bundle: Path, version: int) -> None:
    reseal(bundle, lambda data: data.update(format_version=version))
    with pytest.raises(BundleVersionError, match=rf"format_version {version}, this salmonrun reads 4: export"):
        open_bundle(bundle)


def test_streaming_that_the_encoders_cannot_do(bundle: Path) -> None:
    reseal(bundle, lambda data: data.update(streaming={"sizes": [16], "lookbacks": [16]}))
    with pytest.raises(BundleError, match="streaming"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("where", "key"), [("", "extra"), ("llm", "dtype"), ("audio", "rate"), ("prompt", "system")], ids=str
)
def test_unknown_key(bundle: Path, where: str, key: str) -> None:
    reseal(bundle, lambda data: (data[where] if where else data).update({key: 1}))
    with pytest.raises(BundleError, match=rf"bundle\.json.*unknown key '{key}'"):
        open_bundle(bundle)


@pytest.mark.parametrize("written", [False, True])
def test_keys_younger_than_the_format_may_be_missing(bundle: Path, written: bool) -> None:
    if written:
        reseal(bundle, lambda data: (data.update(confidence=None), data["prompt"].update(nothing="")))
    data = json.loads((bundle / "bundle.json").read_text())
    assert ("confidence" in data, "nothing" in data["prompt"]) == (written, written)
    manifest = open_bundle(bundle).manifest
    assert manifest.confidence is None
    assert manifest.prompt.nothing == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": 0.1}, "score is 0.1; expected a mean log probability"),
        ({"false_rejection": 2.0}, "false_rejection is 2.0; expected a share"),
        ({"recordings": 0}, "recordings is 0; it must be at least 1"),
        ({"colour": 1}, "unknown key 'colour'"),
    ],
)
def test_a_threshold_that_cannot_be(bundle: Path, changes: dict[str, Any], message: str) -> None:
    threshold = {"score": -1.5, "false_rejection": 0.02, "recordings": 50, "annotation": "speech.json"}
    reseal(bundle, lambda data: data.update(confidence=threshold))
    assert open_bundle(bundle).manifest.confidence is not None
    reseal(bundle, lambda data: data.update(confidence=threshold | changes))
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


@pytest.mark.parametrize("key", ["target", "audio", "window", "prompt", "llm", "precision", "graphs", "files"])
def test_missing_key(bundle: Path, key: str) -> None:
    reseal(bundle, lambda data: data.pop(key))
    with pytest.raises(BundleError, match=rf"bundle\.json: key '{key}' is missing"):
        open_bundle(bundle)


def test_wrong_type_is_named(bundle: Path) -> None:
    reseal(bundle, lambda data: data["llm"]["embedding"].update(rows="many"))
    with pytest.raises(BundleError, match=r"llm\.embedding\.rows: expected int, got str 'many'"):
        open_bundle(bundle)


def test_number_too_large_for_a_float(bundle: Path) -> None:
    reseal(bundle, lambda data: data["audio"].update(max_s=10**400))
    with pytest.raises(BundleError, match=r"audio\.max_s"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "llm/../../secret", "..", ".", "", "..\\secret", "llm\\x"]
)
def test_path_outside_the_folder(bundle: Path, name: str) -> None:
    (bundle.parent / "secret").write_bytes(b"secret")
    spec = {"size": 6, "sha256": file_sha256(bundle.parent / "secret")}
    reseal(bundle, lambda data: data["files"].update({name: spec}))
    with pytest.raises(BundleIntegrityError, match="paths must stay inside the bundle folder"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["x" * 300, "nul\0"], ids=["long", "nul"])
def test_path_no_file_can_have(bundle: Path, name: str) -> None:
    reseal(bundle, lambda data: data["files"].update({name: {"size": 6, "sha256": ""}}))
    with pytest.raises(BundleIntegrityError):
        open_bundle(bundle)


@pytest.mark.parametrize("graph", ["whisper", "qformer"])
def test_missing_graph(bundle: Path, graph: str) -> None:
    reseal(bundle, lambda data: data["graphs"].pop(graph))
    with pytest.raises(BundleError, match=rf"has no graph \['{graph}'\]"):
        open_bundle(bundle)


def test_unknown_graph(bundle: Path) -> None:
    reseal(bundle, lambda data: data["graphs"].update(vocoder=data["graphs"]["qformer"]))
    with pytest.raises(BundleError, match=r"unknown ones \['vocoder'\]; known are .*'draft'"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["whisper.onnx", "llm/embed_tokens.bin", "tokenizer.json"])
def test_used_but_unlisted_file(bundle: Path, name: str) -> None:
    reseal(bundle, lambda data: data["files"].pop(name))
    with pytest.raises(BundleIntegrityError, match=rf"uses '{name}' but does not list it"):
        open_bundle(bundle)


# Anything at all in the place of the manifest


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"1" * 5000)
@example(b"\xef\xbb\xbf{}")
def test_fuzzed_manifest(spare: Path, stored: bytes) -> None:
    with content(spare / MANIFEST, stored), pytest.raises(BundleError):
        open_bundle(spare, verify=False)


@given(data=st.data())
def test_fuzzed_bytes_of_the_manifest(spare: Path, data: st.DataObject) -> None:
    stored = (spare / MANIFEST).read_bytes()
    start = data.draw(st.integers(0, len(stored)))
    end = data.draw(st.integers(start, min(start + 50, len(stored))))
    changed = stored[:start] + data.draw(st.binary(max_size=20)) + stored[end:]
    if changed != stored:
        with content(spare / MANIFEST, changed), pytest.raises(BundleError):
            open_bundle(spare, verify=False)


@given(data=st.data())
def test_fuzzed_values_of_a_sealed_manifest(spare: Path, data: st.DataObject) -> None:
    """One value, anywhere in the tree, becomes something else, and the manifest's own hash is right."""
    manifest: Any = manifest_data(spare)
    node = manifest
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], (dict, list)) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(JSON)
    with content(spare / MANIFEST, sealed(manifest)), suppress(BundleError):
        open_bundle(spare, verify=False)


# Manifests that contradict themselves


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data["files"].pop("whisper.onnx.data"), r"whisper\.onnx\.data is there, but .* does not list it"),
        (lambda data: data["prompt"].update(bos_token_id=10**9), "token id 1000000000"),
        (lambda data: data["llm"].update(head_dim=16), r"inputs of llm: past_key\.0 .*; expected .*'capacity', 16\]"),
        (
            lambda data: data["llm"].update(layers=1, windows=[None]),
            r"past_key\.1 .*; expected no such tensor",
        ),
        (lambda data: data["llm"].update(layers=3, windows=3 * [None]), r"inputs of llm: past_key\.2 .* is missing"),
        (lambda data: data["llm"].update(windows=[0, 1]), r"windows are \(0, 1\)"),
        (lambda data: data["llm"].update(windows=[None]), "expected a number or null for 2 layers"),
        (lambda data: data["llm"].update(windows=[None, 2**31]), "expected a number or null for 2 layers"),
        (lambda data: data["llm"].update(max_length=2**31), "max_length is 2147483648; expected 1 to 2147483647"),
        (lambda data: data["llm"].update(heads=3, kv_heads=2), "3 heads cannot share 2 KV heads"),
        (lambda data: data["llm"].update(eps=0.0), r"eps is 0\.0"),
        (lambda data: data["llm"].update(experts={"per_token": 0, "normalised": True}), "per_token is 0"),
        (lambda data: data["llm"].update(dim=63), "the embedding table is 258 x 64, the LLM has 258 tokens of 63"),
        (lambda data: data["audio"].update(n_mels=128), "inputs of whisper: log_mel .* expected .*128"),
        (lambda data: data["fbank"].update(bins=64), "inputs of audio_encoder: fbank .* expected .*64"),
        (lambda data: data["graphs"].pop("audio_encoder"), "inputs of qformer and the graph audio_encoder"),
        (lambda data: data.update(fbank=None), "fbank and the inputs of qformer"),
        (lambda data: data["fbank"].update(scale=0.0), "scale is 0.0; expected 1e-06 to"),
        (lambda data: data["fbank"].update(window="hamming"), "'povey', 'hanning'"),
        (lambda data: data["precision"].update(whisper="banana"), "'fp32', 'fp16', 'bf16', 'int8', 'int4', 'nf4'"),
        (lambda data: data["audio"].pop("max_s"), "'max_s' is missing"),
        (lambda data: data["files"].update({"./golden.npz": data["files"].pop("golden.npz")}), "expected it as"),
    ],
)
def test_manifests_that_contradict_themselves(
    bundle: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    reseal(bundle, edit)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def test_another_layout_of_the_same_manifest_is_fine(bundle: Path) -> None:
    zeros = "0" * 64
    text = json.dumps(manifest_data(bundle) | {"manifest_sha256": zeros}).encode()  # without a line break
    (bundle / MANIFEST).write_bytes(text.replace(zeros.encode(), manifest_hash(text).encode(), 1))
    assert open_bundle(bundle).manifest.format_version == FORMAT_VERSION


# Weights for one decoder or another

NATIVE = {
    "file": "llm/native.bin",
    "layout": "t16",
    "block": 32,
    "activation_block": 32,
    "precision": "int4",
    "lm_head": "int8",
}
TORCH = {"file": "llm/nf4.bin", "block": 64, "precision": "nf4", "lm_head": "fp16"}


def only_for(bundle: Path, **weights: Any) -> None:
    """A bundle whose LLM has these weights, and none for ONNX Runtime."""
    for part in weights.values():
        add_file(bundle, part["file"], bytes(2**21))

    def change(data: dict[str, Any]) -> None:
        data["llm"]["weights"] = {"onnx": None, "native": None, "torch": None} | weights
        data["graphs"].pop("llm")

    reseal(bundle, change)


def test_an_exported_bundle_has_weights_for_onnx_runtime(tiny_bundle: Path) -> None:
    opened = open_bundle(tiny_bundle)
    assert opened.manifest.llm.weights.decoders == ("onnx",)
    assert opened.onnx_weights == OnnxWeights("float32", "fp32", "fp32")


@pytest.mark.parametrize("weights", [{"native": NATIVE}, {"torch": TORCH}, {"native": NATIVE, "torch": TORCH}], ids=str)
def test_weights_for_other_decoders_are_read(bundle: Path, weights: dict[str, Any]) -> None:
    only_for(bundle, **weights)
    opened = open_bundle(bundle)
    assert opened.manifest.llm.weights.decoders == tuple(weights)
    assert set(opened.manifest.llm.weights.files) == {part["file"] for part in weights.values()}
    for decoder, part in weights.items():
        precisions = opened.manifest.precisions(decoder)
        assert (precisions["llm"], precisions["lm_head"]) == (part["precision"], part["lm_head"])


def test_a_decoder_without_weights_is_refused(bundle: Path) -> None:
    only_for(bundle, native=NATIVE)
    with pytest.raises(BundleError, match=r"no graph 'llm', only .* for native: choose another decoder"):
        Engine.load(bundle, decoder="onnx")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda weights: weights.update(tpu=NATIVE),
            "unknown key 'tpu'; known keys are onnx, native, torch",
        ),
        (lambda weights: weights.pop("native"), r"llm\.weights: key 'native' is missing"),
        (lambda weights: weights.update(onnx=None), "there are weights for no decoder"),
        (lambda weights: weights.update(onnx=None, torch=TORCH | {"file": "tokenizer.json"}), "both or neither"),
        (lambda weights: weights.update(native=NATIVE), r"uses 'llm/native\.bin' but does not list it under files"),
        (lambda weights: weights.update(torch=TORCH), r"uses 'llm/nf4\.bin' but does not list it under files"),
        (
            lambda weights: weights.update(native=NATIVE | {"block": 64}),
            "activation_block is 32; it must be a multiple of 64",
        ),
        (
            lambda weights: weights.update(native=NATIVE | {"super_block": 128}),
            "activation_block 32; beside a super_block of 128 they must be 32 and 128",
        ),
        (
            lambda weights: weights.update(native=NATIVE | {"super_block": 64}),
            r"native\.super_block: expected one of 128",
        ),
        (lambda weights: weights.update(native=NATIVE | {"layout": "t17"}), r"native\.layout: expected one of 't16'"),
        (lambda weights: weights.update(native=NATIVE | {"block": 16}), r"native\.block: expected one of 32, 64, 128"),
        (lambda weights: weights.update(native=NATIVE | {"block": 32.0}), r"expected one of 32, 64, 128, got float 32"),
        (
            lambda weights: weights.update(native=NATIVE | {"precision": "fp16"}),
            r"expected one of 'int8', 'int4', 'nf4'",
        ),
        (
            lambda weights: weights.update(torch=TORCH | {"lm_head": "int4"}),
            r"expected one of 'fp32', 'fp16', 'bf16', 'int8'",
        ),
        (lambda weights: weights["onnx"].update(dtype="float16"), "inputs of llm: inputs_embeds float32 .* float16"),
    ],
)
def test_weights_that_cannot_be(bundle: Path, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    reseal(bundle, lambda data: edit(data["llm"]["weights"]))
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


@pytest.mark.parametrize("size", [0, 1, 2**21 - 1, 2**21 + 4096])
def test_native_weights_are_whole_pages(bundle: Path, size: int) -> None:
    only_for(bundle, native=NATIVE)
    add_file(bundle, str(NATIVE["file"]), bytes(size))
    with pytest.raises(BundleError, match=f"native.bin has {size} bytes; expected a multiple of 2097152"):
        open_bundle(bundle)
