"""The bundle format: a folder that can prove what is in it. Its specification is docs/bundle.md."""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from salmonrun.runtime.config import AudioConfig, BlockConfig, FbankConfig, PromptConfig, WindowConfig
from salmonrun.runtime.errors import BundleError, BundleIntegrityError, BundleVersionError, ConfigError
from salmonrun.runtime.schema import from_dict, to_dict

FORMAT_VERSION = 3
MANIFEST = "bundle.json"
MAX_MANIFEST_BYTES = 16 * 2**20
_OWN_HASH = re.compile(rb'("manifest_sha256":\s*)"[0-9a-f]{64}"')
_NO_HASH = "0" * 64

WeightPrecision = Literal["fp32", "fp16", "int8", "int4"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; a dimension is a size or the name of a free one."""

    name: str
    dtype: str  # "float32", "float16", "int32", "int64"
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX file."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def result(self) -> str:
        """Name of the output that is not kept for the next run."""
        return next(spec.name for spec in self.outputs if not spec.name.startswith("present_"))

    @property
    def past(self) -> tuple[TensorSpec, ...]:
        """What it is given of earlier runs: the KV of an LLM, and of an encoder that hears in blocks."""
        return tuple(spec for spec in self.inputs if spec.name.startswith("past_"))


@dataclass(frozen=True)
class FileSpec:
    """What a file's bytes must be."""

    size: int
    sha256: str


@dataclass(frozen=True)
class EmbeddingSpec:
    """The token embedding table: raw little-endian rows [vocab_size, dim]."""

    file: str
    dtype: Literal["float32", "float16", "bfloat16"]
    rows: int
    dim: int


@dataclass(frozen=True)
class LlmSpec:
    """What the decoder needs to know."""

    vocab_size: int
    dim: int
    layers: int
    kv_heads: int
    head_dim: int
    max_length: int  # positions a sequence may have, prompt included
    dtype: Literal["float32", "float16"]  # of activations and KV cache
    embedding: EmbeddingSpec


@dataclass(frozen=True)
class Precision:
    """What the weights of each part are stored as."""

    whisper: WeightPrecision
    audio_encoder: WeightPrecision | None
    qformer: WeightPrecision
    llm: WeightPrecision
    lm_head: WeightPrecision


@dataclass(frozen=True)
class Provenance:
    """Where the bundle comes from."""

    model: str
    exporter: str
    sources: dict[str, str] = field(default_factory=dict)  # file -> sha256
    lora_scale: float | None = None  # of the adapters merged into the LLM
    pruned_layers: tuple[int, ...] = ()  # of the LLM, as its files number them
    whisper_pruned_layers: tuple[int, ...] = ()
    quantization: str = ""


@dataclass(frozen=True)
class Manifest:
    """bundle.json."""

    format_version: int
    manifest_sha256: str  # of bundle.json itself, with these 64 digits as zeros
    target: Literal["cpu", "cuda"]
    audio: AudioConfig
    window: WindowConfig
    prompt: PromptConfig
    llm: LlmSpec
    precision: Precision
    provenance: Provenance
    graphs: dict[str, GraphSpec]  # whisper, audio_encoder (if any), qformer, llm
    files: dict[str, FileSpec]  # every file but bundle.json
    streaming: BlockConfig | None = None  # encoders that also hear in blocks; None: recordings at once only
    fbank: FbankConfig | None = None  # the front end of the audio encoder; None: there is none


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """The path of a file the manifest lists."""
        if name not in self.manifest.files:
            raise BundleIntegrityError(f"{self.folder}: {name!r} is not listed in {MANIFEST}; export the bundle again")
        return self.folder / name


def open_bundle(folder: str | os.PathLike[str], verify: bool = True) -> Bundle:
    """Read and check a bundle.

    Args:
        folder: of the bundle.
        verify: hash every file. Sizes, paths and the manifest's own hash are always checked.

    Raises:
        BundleVersionError: written in a newer format.
        BundleIntegrityError: a file is missing, changed, linked or outside the folder.
        BundleError: not a bundle, or a manifest that does not follow the specification.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    for name, spec in manifest.files.items():
        _check_file(folder, name, spec, verify)
    _check_references(manifest, folder)
    return Bundle(folder, manifest)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"bundle {folder} is not a folder; make one with salmonrun export CHECKPOINT {folder}")
    if path.is_symlink() or not path.is_file():
        raise BundleIntegrityError(f"{folder} has no {MANIFEST} (or a link in its place); it is not a bundle")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleIntegrityError(f"{path} has {path.stat().st_size} bytes; at most {MAX_MANIFEST_BYTES} are read")
    content = path.read_bytes()
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleIntegrityError(f"{path} is not JSON ({error}); it was changed or cut") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{path} has no format_version; it is not a bundle's manifest")
    if version < FORMAT_VERSION:
        raise BundleVersionError(
            f"{path} has format_version {version}, this salmonrun reads {FORMAT_VERSION}: export the checkpoint again"
        )
    if version > FORMAT_VERSION:
        raise BundleVersionError(
            f"{path} has format_version {version}, this salmonrun reads {FORMAT_VERSION}: update salmonrun"
        )
    try:
        manifest = from_dict(Manifest, data, str(path), complete=True)
    except ConfigError as error:
        raise BundleError(str(error)) from error
    if manifest_hash(content) != manifest.manifest_sha256:
        raise BundleIntegrityError(f"{path} was changed after the export (its own sha256 differs); export again")
    return manifest


def _check_file(folder: Path, name: str, spec: FileSpec, verify: bool) -> None:
    path = folder / name
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\\" in name:
        raise BundleIntegrityError(f"{folder}/{MANIFEST} lists {name!r}: paths must stay inside the bundle folder")
    if Path(name).as_posix() != name:
        raise BundleIntegrityError(f"{folder}/{MANIFEST} lists {name!r}; expected it as {Path(name).as_posix()!r}")
    try:
        for depth in range(1, len(parts) + 1):
            if folder.joinpath(*parts[:depth]).is_symlink():
                raise BundleIntegrityError(
                    f"{folder.joinpath(*parts[:depth])} is a symbolic link; copy the file itself"
                )
        if not path.is_file():
            raise BundleIntegrityError(f"{path} is missing; copy the whole bundle folder or export again")
        size = path.stat().st_size
    except (OSError, ValueError) as error:  # a name no file system takes
        raise BundleIntegrityError(
            f"{folder}/{MANIFEST} lists {name[:80]!r}, which cannot be a file: {error}"
        ) from error
    if size != spec.size:
        raise BundleIntegrityError(f"{path} has {size} bytes, {MANIFEST} says {spec.size}: it was changed or cut")
    if verify and file_sha256(path) != spec.sha256:
        raise BundleIntegrityError(f"{path} was changed after the export (sha256 differs); export or copy it again")


def _check_references(manifest: Manifest, folder: Path) -> None:
    needed = {"whisper", "qformer", "llm"}
    missing = needed - set(manifest.graphs)
    if missing:
        raise BundleError(f"{folder}/{MANIFEST} has no graph {sorted(missing)}; it must have {sorted(needed)}")
    for name in [graph.file for graph in manifest.graphs.values()] + [manifest.llm.embedding.file, "tokenizer.json"]:
        if name not in manifest.files:
            raise BundleIntegrityError(f"{folder}/{MANIFEST} uses {name!r} but does not list it under files")
    for graph in manifest.graphs.values():
        weights = f"{graph.file}.data"
        if weights not in manifest.files and (folder / weights).exists():
            raise BundleIntegrityError(f"{folder}/{weights} is there, but {MANIFEST} does not list it; export again")
    _check_consistency(manifest, folder)
    table = manifest.llm.embedding
    expected = table.rows * table.dim * (4 if table.dtype == "float32" else 2)
    if manifest.files[table.file].size != expected:
        raise BundleError(
            f"{folder}/{table.file} has {manifest.files[table.file].size} bytes; "
            f"{table.rows} x {table.dim} {table.dtype} values take {expected}"
        )


def _check_consistency(manifest: Manifest, folder: Path) -> None:
    """Parts of the manifest that must agree with each other."""
    llm, prompt = manifest.llm, manifest.prompt
    special = [*prompt.stop_token_ids, *([] if prompt.bos_token_id is None else [prompt.bos_token_id])]
    for token_id in special:
        if not 0 <= token_id < llm.vocab_size:
            raise BundleError(f"{folder}/{MANIFEST}: prompt has token id {token_id}, the LLM has {llm.vocab_size}")
    hears = any(spec.name == "audio" for spec in manifest.graphs["qformer"].inputs)
    if hears != ("audio_encoder" in manifest.graphs):
        raise BundleError(f"{folder}/{MANIFEST}: the inputs of qformer and the graph audio_encoder do not fit together")
    if hears != (manifest.fbank is not None):
        raise BundleError(f"{folder}/{MANIFEST}: fbank and the graph audio_encoder do not fit together")
    if manifest.streaming:
        try:
            manifest.streaming.check(manifest.audio, manifest.window)
        except ConfigError as error:
            raise BundleError(f"{folder}/{MANIFEST}: {error}") from error
    for name in ("whisper", "audio_encoder"):
        if name in manifest.graphs and bool(manifest.graphs[name].past) != bool(manifest.streaming):
            raise BundleError(f"{folder}/{MANIFEST}: streaming and the inputs of the {name} graph do not fit together")
    buffers = [spec for spec in manifest.graphs["llm"].inputs if spec.name.startswith("past_")]
    expected = ("batch", llm.kv_heads, "capacity", llm.head_dim)
    if len(buffers) != 2 * llm.layers or any(spec.dims != expected for spec in buffers):
        raise BundleError(f"{folder}/{MANIFEST}: the llm graph's KV buffers are not those of llm: {expected}")


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it is stored, its own hash filled in."""
    data = to_dict(manifest) | {"manifest_sha256": _NO_HASH}
    content = (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
    return content.replace(_NO_HASH.encode(), manifest_hash(content).encode(), 1)


def manifest_hash(content: bytes) -> str:
    """sha256 of a manifest's bytes with the digits of its own hash as zeros."""
    blanked = _OWN_HASH.sub(rb'\1"' + _NO_HASH.encode() + b'"', content, count=1)
    return hashlib.sha256(blanked).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
