"""A bundle that is not byte for byte the exported one is refused, and the error names the file."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import onnxruntime
import pytest

from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.bundle import file_sha256, open_bundle
from salmonrun.runtime.errors import BundleError, BundleIntegrityError, ConfigError, DeviceError
from salmonrun.runtime.manifest import MANIFEST, FileSpec
from tests.helpers.damage import add_file, flipped

pytestmark = pytest.mark.onnx  # whose files are damaged here

LISTED = (
    "audio_encoder.onnx",
    "audio_encoder.onnx.data",
    "golden.npz",
    "llm/decoder.onnx",
    "llm/decoder.onnx.data",
    "llm/embed_tokens.bin",
    "parity.json",
    "qformer.onnx",
    "qformer.onnx.data",
    "tokenizer.json",
    "whisper.onnx",
    "whisper.onnx.data",
)
every_file = pytest.mark.parametrize("name", [*LISTED, MANIFEST])
every_listed_file = pytest.mark.parametrize("name", LISTED)


# What is right


def test_the_bundle_has_these_files(tiny_bundle: Path) -> None:
    found = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    assert found == {*LISTED, MANIFEST, "README.md"}
    assert set(open_bundle(tiny_bundle).manifest.files) == set(LISTED)


def test_manifest_describes_the_files(tiny_bundle: Path) -> None:
    for name, spec in open_bundle(tiny_bundle).manifest.files.items():
        assert spec == FileSpec((tiny_bundle / name).stat().st_size, file_sha256(tiny_bundle / name))


def test_path_of_an_unlisted_file(tiny_bundle: Path) -> None:
    opened = open_bundle(tiny_bundle)
    assert opened.path("tokenizer.json") == tiny_bundle / "tokenizer.json"
    with pytest.raises(BundleIntegrityError, match=r"'other\.bin' is not listed"):
        opened.path("other.bin")


# Damaged files


@every_file
@pytest.mark.parametrize("part", [0.0, 0.31, 0.5, 0.77, 1.0], ids=lambda part: f"at{part}")
def test_flipped_byte(bundle: Path, name: str, part: float) -> None:
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(flipped(data, round(part * (len(data) - 1))))
    with pytest.raises(BundleError, match=Path(name).name):
        open_bundle(bundle)


@every_file
def test_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleIntegrityError, match=Path(name).name):
        open_bundle(bundle)


@every_file
@pytest.mark.parametrize("verify", [True, False])
def test_truncated_file(bundle: Path, name: str, verify: bool) -> None:
    path = bundle / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(BundleIntegrityError, match=path.name):
        open_bundle(bundle, verify)


@every_file
def test_emptied_file(bundle: Path, name: str) -> None:
    os.truncate(bundle / name, 0)
    with pytest.raises(BundleIntegrityError, match=Path(name).name):
        open_bundle(bundle)


@every_file
@pytest.mark.parametrize("verify", [True, False])
def test_extended_file(bundle: Path, name: str, verify: bool) -> None:
    with (bundle / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(BundleIntegrityError, match=Path(name).name):
        open_bundle(bundle, verify)


@every_file
def test_file_replaced_by_a_link_to_its_copy(bundle: Path, name: str) -> None:
    path = bundle / name
    copy = bundle.parent / "copy"
    shutil.move(path, copy)
    path.symlink_to(copy)
    with pytest.raises(BundleIntegrityError, match=rf"{path.name}.*link"):
        open_bundle(bundle)


@every_file
def test_file_replaced_by_a_folder(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    (bundle / name).mkdir()
    with pytest.raises(BundleIntegrityError, match=Path(name).name):
        open_bundle(bundle)


@pytest.fixture
def snapshot(bundle: Path, tmp_path: Path) -> Path:
    """The bundle as huggingface_hub keeps a repository in its cache: links to blobs that are named by their hashes."""
    repository = tmp_path / "hub" / "models--me--tiny"
    folder = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for file in [path for path in bundle.rglob("*") if path.is_file()]:
        blob, link = repository / "blobs" / file_sha256(file), folder / file.relative_to(bundle)
        shutil.move(file, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


def test_the_cache_of_the_hub(snapshot: Path, speech: Path, tiny_engine: Engine, tmp_path: Path) -> None:
    found = huggingface_hub.snapshot_download("me/tiny", cache_dir=tmp_path / "hub", local_files_only=True)
    assert Path(found) == snapshot
    config = GenerationConfig(max_new_tokens=8)
    expected = tiny_engine.generate(speech, config=config).token_ids
    assert Engine.load(found).generate(speech, config=config).token_ids == expected
    (tmp_path / "short").symlink_to(snapshot)  # where the folder is reached by a link, what is in it stays in its place
    assert open_bundle(tmp_path / "short").manifest == tiny_engine.bundle.manifest


def test_a_bundle_in_a_folder_of_a_repository(snapshot: Path) -> None:
    (snapshot / "int8").mkdir()
    for name in [path.name for path in snapshot.iterdir() if path.name != "int8"]:
        shutil.move(snapshot / name, snapshot / "int8" / name)
    for link in [path for path in (snapshot / "int8").rglob("*") if path.is_symlink()]:
        target = snapshot.parents[1] / "blobs" / Path(os.readlink(link)).name
        link.unlink()
        link.symlink_to(os.path.relpath(target, link.parent))
    open_bundle(snapshot / "int8")


@pytest.mark.parametrize("name", [MANIFEST, "tokenizer.json", "llm/decoder.onnx.data"])
def test_links_of_the_cache_are_followed_only_to_what_is_hashed(snapshot: Path, name: str) -> None:
    with pytest.raises(BundleIntegrityError, match=r"is a symbolic link, which verify=False does not follow"):
        open_bundle(snapshot, verify=False)
    blob = (snapshot / name).resolve()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    with pytest.raises(BundleError, match=re.escape(Path(name).name)):
        open_bundle(snapshot)


def outside(snapshot: Path, blob: Path) -> Path:
    return Path(shutil.copyfile(blob, snapshot.parents[3] / "outside"))


def other_repository(snapshot: Path, blob: Path) -> Path:
    (snapshot.parents[2] / "models--me--other" / "blobs").mkdir(parents=True)
    return Path(shutil.copyfile(blob, snapshot.parents[2] / "models--me--other" / "blobs" / blob.name))


def beside_blobs(snapshot: Path, blob: Path) -> Path:
    return Path(shutil.copyfile(blob, snapshot.parents[1] / "refs" / blob.name))


def deeper(snapshot: Path, blob: Path) -> Path:
    (blob.parent / "deeper").mkdir()
    return Path(shutil.copyfile(blob, blob.parent / "deeper" / blob.name))


def other_snapshot(snapshot: Path, blob: Path) -> Path:
    (snapshot.parent / "other").mkdir()
    return Path(shutil.copyfile(blob, snapshot.parent / "other" / "file"))


def linked_blob(snapshot: Path, blob: Path) -> Path:
    link = blob.parent / "link"
    link.symlink_to(blob)
    return link


def linked_blobs(snapshot: Path, blob: Path) -> Path:
    blob.parent.rename(snapshot.parents[3] / "elsewhere")
    blob.parent.symlink_to(snapshot.parents[3] / "elsewhere")
    return blob


@pytest.mark.parametrize("name", [MANIFEST, "llm/embed_tokens.bin"])
@pytest.mark.parametrize(
    "place", [outside, other_repository, beside_blobs, deeper, other_snapshot, linked_blob, linked_blobs]
)
def test_links_that_leave_the_blobs_are_refused(snapshot: Path, name: str, place: Callable[[Path, Path], Path]) -> None:
    """Though the content is what the manifest says."""
    link = snapshot / name
    target = place(snapshot, link.resolve())
    link.unlink()
    link.symlink_to(os.path.relpath(target, link.parent))
    with pytest.raises(
        BundleIntegrityError, match=rf"{'.*' if place is linked_blobs else link.name} is a symbolic link"
    ):
        open_bundle(snapshot)


def test_a_linked_folder_in_the_cache(snapshot: Path) -> None:
    (snapshot / "llm").rename(snapshot.parent / "llm")
    (snapshot / "llm").symlink_to("../llm")
    with pytest.raises(BundleIntegrityError, match=r"llm is a symbolic link"):
        open_bundle(snapshot)


def test_a_broken_link_in_the_cache(snapshot: Path) -> None:
    (snapshot / "tokenizer.json").resolve().unlink()
    with pytest.raises(BundleIntegrityError, match=r"tokenizer\.json is missing"):
        open_bundle(snapshot)


def test_folder_replaced_by_a_link(bundle: Path) -> None:
    shutil.move(bundle / "llm", bundle.parent / "llm")
    (bundle / "llm").symlink_to(bundle.parent / "llm")
    with pytest.raises(BundleIntegrityError, match=r"llm is a symbolic link"):
        open_bundle(bundle)


# Engine.load


@every_listed_file
def test_engine_refuses_a_changed_file(bundle: Path, name: str) -> None:
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(flipped(data, len(data) // 2))
    with pytest.raises(BundleIntegrityError, match=Path(name).name):
        Engine.load(bundle)


@pytest.mark.parametrize(
    "name", ["whisper.onnx", "audio_encoder.onnx", "qformer.onnx", "llm/decoder.onnx", "tokenizer.json"]
)
def test_engine_refuses_a_listed_file_that_is_nonsense(bundle: Path, name: str) -> None:
    add_file(bundle, name, b"nonsense")
    with pytest.raises(BundleError, match=Path(name).name):
        Engine.load(bundle)


def test_engine_refuses_a_graph_of_another_signature(bundle: Path) -> None:
    add_file(bundle, "whisper.onnx", (bundle / "qformer.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"whisper\.onnx has inputs speech .*; bundle\.json says log_mel"):
        Engine.load(bundle)


def test_engine_refuses_an_embedding_table_of_another_size(bundle: Path) -> None:
    add_file(bundle, "llm/embed_tokens.bin", np.zeros((257, 64), np.float32).tobytes())
    with pytest.raises(BundleError, match=r"embed_tokens\.bin"):
        Engine.load(bundle)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is a GPU")
def test_cuda_that_is_not_there(tiny_bundle: Path) -> None:
    for device in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match=rf"'{device}' .* no CUDA provider: pip uninstall .*salmonrun\[cuda\]"):
            Engine.load(tiny_bundle, device=device)


def test_unknown_device(tiny_bundle: Path) -> None:
    for device in ("tpu", "cuda:", "cuda:-1", "cuda:x", "CUDA", ""):
        with pytest.raises(DeviceError, match=f"device is '{device}'; expected 'auto', 'cpu', 'cuda' or, .* 'cuda:1'"):
            Engine.load(tiny_bundle, device=device)


def test_unknown_decoder(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"decoder is 'x'; expected .*'onnx'"):
        Engine.load(tiny_bundle, decoder="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, -2])
def test_threads(tiny_bundle: Path, threads: int) -> None:
    with pytest.raises(ConfigError, match=f"threads is {threads}; it must be at least 1"):
        Engine.load(tiny_bundle, threads=threads)
