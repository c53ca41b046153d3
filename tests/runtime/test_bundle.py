"""A bundle that is not byte for byte the exported one is refused, and the error names the file."""

import os
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from salmonrun.runtime import Engine
from salmonrun.runtime.bundle import file_sha256, open_bundle
from salmonrun.runtime.errors import BundleError, BundleIntegrityError, ConfigError, DeviceError
from salmonrun.runtime.manifest import MANIFEST, FileSpec
from tests.helpers.damage import add_file, flipped

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
    with pytest.raises(DeviceError, match=r"no CUDA provider; pip uninstall onnxruntime, .*salmonrun\[cuda\]"):
        Engine.load(tiny_bundle, device="cuda")


def test_unknown_device(tiny_bundle: Path) -> None:
    with pytest.raises(DeviceError, match="device is 'tpu'; expected 'auto', 'cpu' or 'cuda'"):
        Engine.load(tiny_bundle, device="tpu")  # type: ignore[arg-type]


def test_unknown_decoder(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"decoder is 'x'; expected .*'onnx'"):
        Engine.load(tiny_bundle, decoder="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, -2])
def test_threads(tiny_bundle: Path, threads: int) -> None:
    with pytest.raises(ConfigError, match=f"threads is {threads}; it must be at least 1"):
        Engine.load(tiny_bundle, threads=threads)
