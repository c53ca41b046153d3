"""Where the parts are that a checkpoint refers to: read as it takes them, pinned by hashes, found again and checked."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.foreign.adapters import read_adapter
from salmonrun.training.foreign.hub import find_cached
from salmonrun.training.foreign.layers import kept_layers, renumbered, shortened
from salmonrun.training.foreign.weight_files import weight_files
from salmonrun.training.model.config import PartSource, WhisperConfig
from salmonrun.training.model.encoders import AudioEncoderConfig
from salmonrun.training.model.lora import merged_weights
from salmonrun.training.tensors import LazyTensors

C = TypeVar("C", WhisperConfig, AudioEncoderConfig, dict[str, Any])


def read_source(source: PartSource, read: Callable[[Path], tuple[C, LazyTensors]]) -> tuple[C, LazyTensors]:
    """A part as a checkpoint takes it: an adapter merged, layers left out; tensors are still read on demand.

    Args:
        source: where the part is.
        read: of its kind, see part_files.

    Raises:
        CheckpointError: a file is missing or damaged, the adapter does not fit, or a layer to be left out is not there.
    """
    config, tensors = read(Path(source.path))
    if source.adapter:
        tensors = _adapted(source.path, tensors, source.adapter)
    if not source.left_out_layers:
        return config, tensors
    if isinstance(config, WhisperConfig):
        left = kept_layers(config.layers, source)
        return replace(config, layers=len(left)), renumbered(tensors, "layers.", left)
    if isinstance(config, AudioEncoderConfig):
        left = kept_layers(config.layers, source)
        return config.with_layers(len(left)), renumbered(tensors, config.layer_prefix, left)
    left = kept_layers(int(config["num_hidden_layers"]), source)
    return shortened(config, left, source.path), renumbered(tensors, "model.layers.", left)


def _adapted(path: str, tensors: LazyTensors, adapter: PartSource) -> LazyTensors:
    lora, matrices = read_adapter(Path(adapter.path))
    missing = sorted({name.rsplit(".", 1)[0] for name in matrices if f"{name[:-2]}.weight" not in tensors})
    if missing:
        raise CheckpointError(f"{adapter.path} adapts {missing[:3]}, which {path} does not have")
    return merged_weights(tensors, matrices, lora)


def pin_source(source: PartSource) -> PartSource:
    """The source with an absolute path and the hashes of its files, as a checkpoint's config has it."""
    # Links in the hub's cache are named as the files are, what they point to is not.
    path = Path(os.path.abspath(source.path)) if source.hub else Path(source.path).resolve()
    files = [path] if path.is_file() else source_files(path)
    return replace(
        source,
        path=str(path),
        sha256={file.name: file_sha256(file) for file in files},
        adapter=pin_source(source.adapter) if source.adapter else None,
    )


def source_files(folder: Path) -> list[Path]:
    """The files that are read of a transformers or PEFT folder: the config and the weights, without other copies."""
    names = ["config.json", "adapter_config.json", "adapter_model.safetensors"]
    weights = weight_files(folder)
    if weights:
        names.append("pytorch_model.bin.index.json" if weights[0].suffix == ".bin" else "model.safetensors.index.json")
    return sorted({*(folder / name for name in names if (folder / name).is_file()), *weights})


def resolve_source(source: PartSource, checkpoint: Path, verify: bool = True) -> PartSource:
    """The source with absolute paths of this machine, its hashes checked; from the hub's cache if it has moved there.

    Raises:
        CheckpointError: it is not there, or its bytes are not those the checkpoint was made with.
    """
    path = Path(source.path) if Path(source.path).is_absolute() else checkpoint / source.path
    if not path.exists():
        if source.hub is None:
            raise CheckpointError(f"{path} does not exist; the checkpoint {checkpoint} refers to it: put it there")
        path = find_cached(source.hub, list(source.sha256))
    for name, expected in source.sha256.items():
        file = path if path.is_file() else path / name
        if not file.is_file():
            raise CheckpointError(f"{file} does not exist; the checkpoint {checkpoint} was made with it")
        if verify and file_sha256(file) != expected:
            raise CheckpointError(f"{file} has changed since the checkpoint {checkpoint} was made (sha256 differs)")
    adapter = resolve_source(source.adapter, checkpoint, verify) if source.adapter else None
    # Absolute from here on: a copy of the checkpoint may be saved elsewhere. A link in the hub's cache stays one.
    return replace(source, path=os.path.abspath(path), adapter=adapter)


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
