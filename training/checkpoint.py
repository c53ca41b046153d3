"""Checkpoint folders: config.json, model.safetensors (what was trained), tokenizer.json, and references to the rest."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from salmonrun.runtime.errors import CheckpointError
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.foreign.part_files import read_audio_encoder, read_llm, read_whisper
from salmonrun.training.foreign.sources import file_sha256, read_source, resolve_source
from salmonrun.training.model.config import ModelConfig, load_config, save_config
from salmonrun.training.model.llm import build_llm, load_base, published_parameters
from salmonrun.training.model.lora import base_parameters, load_lora, lora_parameters, merged_weights
from salmonrun.training.model.qformer import QFormer
from salmonrun.training.model.salmonn import SalmonnModel
from salmonrun.training.model.whisper import WhisperEncoder, build_whisper
from salmonrun.training.staging import staged
from salmonrun.training.tensors import LazyTensors, load_strict, open_safetensors, with_prefix, write_safetensors

M = TypeVar("M", bound=nn.Module)
PARTS = ("whisper", "whisper_lora", "audio_encoder", "qformer", "llm", "lora")
READERS: dict[str, Callable[[Path], Any]] = {
    "whisper": read_whisper,
    "audio_encoder": read_audio_encoder,
    "llm": read_llm,
}  # of the parts that may be referred to


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; its tensors are read on demand."""

    folder: Path
    config: ModelConfig
    parts: dict[str, LazyTensors]

    @property
    def tokenizer_file(self) -> Path:
        """The path of its tokenizer.json."""
        return self.folder / "tokenizer.json"

    def merged_whisper(self) -> LazyTensors:
        """The Whisper encoder's tensors with its adapters, if any, added: what a bundle computes with."""
        return merged_weights(self.parts["whisper"], self.parts["whisper_lora"], self.config.whisper_lora)

    def merged_llm(self) -> LazyTensors:
        """The LLM's tensors with its adapters, if any, added."""
        return merged_weights(self.parts["llm"], self.parts["lora"], self.config.lora)

    def hashes(self) -> dict[str, str]:
        """sha256 of the checkpoint's own files and of those it refers to."""
        own = {name: file_sha256(self.folder / name) for name in ("config.json", "model.safetensors", "tokenizer.json")}
        for part, source in self.config.sources.items():
            for hashed in (source, source.adapter) if source.adapter else (source,):
                own |= {f"{part}/{name}": digest for name, digest in hashed.sha256.items()}
        return own

    def sha256(self) -> str:
        """One hash of all of them."""
        return hashlib.sha256(json.dumps(self.hashes(), sort_keys=True).encode()).hexdigest()


def open_checkpoint(folder: str | Path, verify: bool = True) -> Checkpoint:
    """Read the config and find every part's tensors, without loading them.

    Raises:
        CheckpointError: a file or part is missing, changed, or does not match the config.
    """
    folder = Path(folder)
    config = load_config(folder)
    for name in ("model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} does not exist; a checkpoint folder needs it")
    stored = open_safetensors(folder / "model.safetensors")
    prefixes = {part: stored_prefix(config, part) for part in PARTS}
    unknown = sorted({name.split(".")[0] for name in stored} - set(prefixes.values()))
    if unknown:
        known = sorted(prefixes.values())
        raise CheckpointError(f"{folder}/model.safetensors has tensors of {unknown}; its config knows {known}")
    parts = {part: with_prefix(stored, f"{prefix}.") for part, prefix in prefixes.items()}
    for part, source in config.sources.items():
        if parts[part]:
            raise CheckpointError(f"{folder}: {part} is both stored and referred to ({source.path}); keep one")
        source = resolve_source(source, folder, verify)
        part_config, parts[part] = read_source(source, READERS[part])
        if part_config != getattr(config, part):
            raise CheckpointError(f"{source.path} does not match the checkpoint's {part} config")
        config = replace(config, sources=replace(config.sources, **{part: source}))
    return Checkpoint(folder, config, parts)


def stored_prefix(config: ModelConfig, part: str) -> str:
    """The first word of a part's names in model.safetensors: an audio encoder goes by its kind."""
    return config.audio_encoder.kind if part == "audio_encoder" and config.audio_encoder else part


def load(folder: str | Path, verify: bool = True, dtype: torch.dtype = torch.float32) -> SalmonnModel:
    """The whole model in PyTorch; `dtype` is the LLM's.

    Raises:
        CheckpointError: names what is missing, extra, misshapen or changed.
    """
    checkpoint = open_checkpoint(folder, verify)
    config, tokenizer = checkpoint.config, Tokenizer(checkpoint.tokenizer_file)
    return SalmonnModel(
        config,
        tokenizer,
        load_whisper(checkpoint),
        load_audio_encoder(checkpoint) if config.audio_encoder else None,
        load_qformer(checkpoint),
        load_llm(checkpoint, dtype),
    )


def load_whisper(checkpoint: Checkpoint) -> WhisperEncoder:
    """The Whisper encoder alone, its adapters attached and not merged."""
    whisper = build_whisper(checkpoint.config.whisper, checkpoint.config.whisper_lora)
    load_strict(dict(base_parameters(whisper)), checkpoint.parts["whisper"], "whisper")
    load_lora(whisper, checkpoint.parts["whisper_lora"], "whisper_lora")
    return whisper


def load_audio_encoder(checkpoint: Checkpoint) -> nn.Module:
    """The audio encoder alone; the config must have one."""
    if checkpoint.config.audio_encoder is None:
        raise CheckpointError(f"{checkpoint.folder} has no audio encoder")
    return _filled(checkpoint.config.audio_encoder.build(), checkpoint, "audio_encoder")


def load_qformer(checkpoint: Checkpoint) -> QFormer:
    """The Q-Former without the rest of the model."""
    return _filled(QFormer(checkpoint.config), checkpoint, "qformer")


def load_llm(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    """The LLM alone, its adapters attached and not merged. On the device "meta" it takes no memory, but is checked."""
    config = checkpoint.config
    with torch.device(device):
        llm = build_llm(config.llm, config.lora, dtype)
    load_base(llm, checkpoint.parts["llm"], tied=bool(config.llm.get("tie_word_embeddings", False)))
    load_lora(llm, checkpoint.parts["lora"], "lora")
    return llm


def _filled(module: M, checkpoint: Checkpoint, part: str) -> M:
    load_strict(module.state_dict(), checkpoint.parts[part], part)
    return module.eval()


def save(
    model: SalmonnModel,
    folder: str | Path,
    tokenizer_file: str | Path,
    dtype: torch.dtype | None = None,
    kept: Mapping[str, LazyTensors] | None = None,
) -> None:
    """Write a checkpoint: parts without a source, and all adapters, go into model.safetensors.

    Args:
        model: what to save.
        folder: to be created.
        tokenizer_file: to be copied.
        dtype: of the floating-point tensors; None for their own.
        kept: tensors of whole parts, to be stored as they are instead of the model's: of frozen parts, which the model
            may hold in another precision or in 4 bits.
    """
    config = model.config
    parts: dict[str, Mapping[str, torch.Tensor]] = {
        "whisper_lora": lora_parameters(model.whisper),
        "qformer": model.qformer.state_dict(),
        "lora": lora_parameters(model.llm),
    }
    if config.sources.whisper is None:
        parts["whisper"] = base_parameters(model.whisper)
    if config.sources.audio_encoder is None and model.audio_encoder is not None:
        parts["audio_encoder"] = model.audio_encoder.state_dict()
    if config.sources.llm is None:
        parts["llm"] = published_parameters(model.llm)
    tensors: dict[str, torch.Tensor] = {}
    for part, named in parts.items():
        prefix = stored_prefix(config, part)
        if kept and part in kept:
            tensors |= {f"{prefix}.{name}": get().contiguous() for name, get in kept[part].items()}
            continue
        assert all(value.is_floating_point() for value in named.values()), "4-bit weights are not saved: keep the part"
        tensors |= {f"{prefix}.{n}": value.detach().to(dtype or value.dtype).contiguous() for n, value in named.items()}
    write_checkpoint(config, tensors, tokenizer_file, folder)


def write_checkpoint(
    config: ModelConfig, tensors: dict[str, torch.Tensor], tokenizer_file: str | Path, folder: str | Path
) -> None:
    """Write the three files into a temporary folder beside `folder` and rename it: all or nothing.

    Raises:
        CheckpointError: `folder` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder} exists; choose another name or remove it")
    with staged(folder) as temporary:
        save_config(config, temporary)
        write_safetensors(tensors, temporary / "model.safetensors", {"format": "pt"})
        shutil.copyfile(tokenizer_file, temporary / "tokenizer.json")
        (temporary / "model.safetensors").chmod(0o644)  # safetensors writes it for the owner alone
