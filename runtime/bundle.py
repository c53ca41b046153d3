"""The bundle format: a folder that can prove what is in it. Its specification is docs/bundle.md."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from salmonrun.runtime.cores import usable_cores
from salmonrun.runtime.errors import BundleError, BundleIntegrityError, BundleVersionError, ConfigError
from salmonrun.runtime.file_kind import odd_kind
from salmonrun.runtime.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    FileSpec,
    GraphSpec,
    Manifest,
    OnnxWeights,
    manifest_hash,
)
from salmonrun.runtime.schema import from_dict
from salmonrun.runtime.signature import check_graph, check_signatures
from salmonrun.runtime.signed import Verify, check_signature, is_key

MAX_MANIFEST_BYTES = 16 * 2**20
NATIVE_PAGE = 2 * 2**20  # weights for our own kernels are mapped with pages of this size

T = TypeVar("T")


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle."""

    folder: Path
    manifest: Manifest
    private: bool = False  # whether weights are read into memory of this process alone, instead of being mapped

    def path(self, name: str) -> Path:
        """The path of a file the manifest lists."""
        if name not in self.manifest.files:
            raise BundleIntegrityError(f"{self.folder}: {name!r} is not listed in {MANIFEST}; export the bundle again")
        return self.folder / name

    def graph(self, name: str) -> GraphSpec:
        """What the manifest says of a graph.

        Raises:
            BundleError: the bundle has no such graph: it runs on something else.
        """
        manifest = self.manifest
        if name not in manifest.graphs:
            llm = name == "llm"
            what, runs = ("decoder", manifest.llm.weights.decoders) if llm else ("encoder", manifest.encoder_runtimes)
            raise BundleError(
                f"{self.folder} has no graph {name!r}, only {', '.join(manifest.graphs)}, and weights of it for "
                f"{', '.join(runs)}: choose another {what}, or export with --{what} onnx"
            )
        return manifest.graphs[name]

    @property
    def model_files(self) -> list[Path]:
        """The paths of all that an engine may load; golden runs and descriptions are not of it."""
        manifest, llm = self.manifest, self.manifest.llm
        names = {name for graph in manifest.graphs.values() for name in (graph.file, graph.weights)}
        names |= {*llm.weights.files, *manifest.native_files, llm.embedding.file, "tokenizer.json"}
        return [self.folder / name for name in (MANIFEST, *sorted(names & manifest.files.keys()))]

    @property
    def onnx_weights(self) -> OnnxWeights:
        """The LLM's weights for ONNX Runtime.

        Raises:
            BundleError: there are none.
        """
        self.graph("llm")
        weights = self.manifest.llm.weights.onnx
        assert weights is not None, "open_bundle has checked that they come with the graph"
        return weights


def open_bundle(folder: str | os.PathLike[str], verify: Verify = True) -> Bundle:
    """Read and check a bundle.

    Args:
        folder: of the bundle.
        verify: hash every file; without it, no link is followed, not even in the Hugging Face cache. Sizes, paths, the
            manifest's own hash and the graphs are always checked. A public key: whether it is signed by it, too.

    Raises:
        BundleVersionError: written in another format.
        BundleIntegrityError: a file is missing, changed, linked or outside the folder.
        BundleSignatureError: it is not signed by that key.
        BundleError: not a bundle, a manifest that does not follow the specification, or a graph that is not as it says.
    """
    folder = Path(folder)
    return check_bundle(folder, read_manifest(folder, verify), bool(verify))


def check_bundle(folder: Path, manifest: Manifest, verify: bool = True) -> Bundle:
    """A bundle by its manifest, wherever that is from: an exporter has it before it is written.

    Raises:
        BundleError: as of `open_bundle`.
    """
    for name, spec in manifest.files.items():
        _check_file(folder, name, spec, verify)
    if verify:
        _check_hashes(folder, manifest.files)
    _check_references(manifest, folder)
    _check_consistency(manifest, folder)
    for name, graph in manifest.graphs.items():
        data, heads = manifest.files.get(graph.weights), manifest.llm.heads if name == "llm" else None
        check_graph(folder / graph.file, graph, data.size if data else 0, heads)
    return Bundle(folder, manifest)


def read_manifest(folder: Path, verify: Verify = True) -> Manifest:
    """The manifest alone, as it was written, and signed by a key; whether files are as it says is for `open_bundle`.

    Raises:
        BundleError: as of `open_bundle`.
    """
    path = folder / MANIFEST
    if folder.is_file():
        raise BundleError(f"bundle {folder} is a file; expected the folder that salmonrun export has made")
    if not folder.is_dir():
        raise BundleError(f"bundle {folder} does not exist; make one with salmonrun export CHECKPOINT {folder}")
    if not path.is_file():
        raise BundleIntegrityError(f"{folder} has no {MANIFEST}; it is not a bundle")
    if path.is_symlink():
        _check_link(folder, path, bool(verify))
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleIntegrityError(f"{path} has {path.stat().st_size} bytes; at most {MAX_MANIFEST_BYTES} are read")
    content = _read(path, Path.read_bytes)
    if is_key(verify):
        check_signature(folder, content, verify)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = odd_kind(path) or f"{error}; it was changed or cut"
        raise BundleIntegrityError(f"{path} is not JSON: {reason}") from error
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
        for depth in range(1, len(parts)):
            if folder.joinpath(*parts[:depth]).is_symlink():
                raise BundleIntegrityError(
                    f"{folder.joinpath(*parts[:depth])} is a symbolic link; copy the folder itself"
                )
        if path.is_symlink():
            _check_link(folder, path, verify)
        if not path.is_file():
            raise BundleIntegrityError(f"{path} is missing; copy the whole bundle folder or export again")
        size = path.stat().st_size
    except PermissionError as error:
        raise BundleIntegrityError(f"{path} cannot be read: {error.strerror}") from error
    except (OSError, ValueError) as error:  # a name no file system takes
        raise BundleIntegrityError(
            f"{folder}/{MANIFEST} lists {name[:80]!r}, which cannot be a file: {error}"
        ) from error
    if size != spec.size:
        reason = odd_kind(path) or "it was changed or cut"
        raise BundleIntegrityError(f"{path} has {size} bytes, {MANIFEST} says {spec.size}: {reason}")


def _check_hashes(folder: Path, files: Mapping[str, FileSpec]) -> None:
    """Hash several files at once, the largest first: hashing is what takes the time of a load."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        largest = sorted(files, key=lambda name: -files[name].size)
        hashes = {name: pool.submit(_read, folder / name, file_sha256) for name in largest}
        for name, spec in files.items():
            if hashes[name].result() != spec.sha256:
                path = folder / name
                raise BundleIntegrityError(
                    f"{path} was changed after the export (sha256 differs); export or copy it again"
                )


def _check_link(folder: Path, path: Path, verify: bool) -> None:
    """Refuse a link, unless it is one of the Hugging Face cache, and what it points to is hashed.

    There a file is a link from models--ORG--NAME/snapshots/COMMIT to models--ORG--NAME/blobs/HASH.
    """
    snapshot = folder.resolve()
    repository = next((parent.parent for parent in (snapshot, *snapshot.parents) if parent.name == "snapshots"), None)
    place = snapshot / path.relative_to(folder)
    target = Path(os.path.normpath(place.parent / os.readlink(place)))
    blobs = repository / "blobs" if repository else None
    if blobs is None or target.parent != blobs or blobs.is_symlink() or target.is_symlink():
        raise BundleIntegrityError(
            f"{path} is a symbolic link to {os.readlink(place)}; copy the file itself (links are followed only in the "
            "Hugging Face cache, from a repository's snapshots to its blobs)"
        )
    if not verify:
        raise BundleIntegrityError(f"{path} is a symbolic link, which verify=False does not follow; leave it out")


def _check_references(manifest: Manifest, folder: Path) -> None:
    """Every file that is used must be listed, and of the size that is expected."""
    llm, graphs = manifest.llm, manifest.graphs.values()
    weights = (*llm.weights.files, *manifest.native_files)
    for name in (*(graph.file for graph in graphs), *weights, llm.embedding.file, "tokenizer.json"):
        if name not in manifest.files:
            raise BundleIntegrityError(f"{folder}/{MANIFEST} uses {name!r} but does not list it under files")
    for graph in graphs:
        if graph.weights not in manifest.files and (folder / graph.weights).exists():
            raise BundleIntegrityError(
                f"{folder}/{graph.weights} is there, but {MANIFEST} does not list it; export again"
            )
    table = llm.embedding
    expected, found = table.rows * table.dim * (4 if table.dtype == "float32" else 2), manifest.files[table.file].size
    if found != expected:
        raise BundleError(
            f"{folder}/{table.file} has {found} bytes; {table.rows} x {table.dim} {table.dtype} values take {expected}"
        )
    for name in manifest.native_files:
        size = manifest.files[name].size
        if not size or size % NATIVE_PAGE:
            raise BundleError(f"{folder}/{name} has {size} bytes; expected a multiple of {NATIVE_PAGE}")


def _check_consistency(manifest: Manifest, folder: Path) -> None:
    """Parts of the manifest that must agree with each other."""
    llm, prompt = manifest.llm, manifest.prompt
    if (llm.embedding.rows, llm.embedding.dim) != (llm.vocab_size, llm.dim):
        raise BundleError(
            f"{folder}/{MANIFEST}: the embedding table is {llm.embedding.rows} x {llm.embedding.dim}, "
            f"the LLM has {llm.vocab_size} tokens of {llm.dim}"
        )
    special = [*prompt.stop_token_ids, *([] if prompt.bos_token_id is None else [prompt.bos_token_id])]
    for token_id in special:
        if not 0 <= token_id < llm.vocab_size:
            raise BundleError(f"{folder}/{MANIFEST}: prompt has token id {token_id}, the LLM has {llm.vocab_size}")
    try:
        if manifest.streaming:
            manifest.streaming.check(manifest.audio, manifest.window)
        check_signatures(manifest)
    except (ConfigError, BundleError) as error:
        raise BundleError(f"{folder}/{MANIFEST}: {error}") from error


def _read(path: Path, how: Callable[[Path], T]) -> T:
    try:
        return how(path)
    except OSError as error:
        raise BundleIntegrityError(f"{path} cannot be read: {error.strerror}") from error


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
