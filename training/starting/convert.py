"""SALMONN and Nota `.pth` files into a checkpoint folder; every key is accounted for."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from salmonrun.runtime.config import AudioConfig, PromptConfig
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.checkpoint import write_checkpoint
from salmonrun.training.foreign.adapters import read_adapter
from salmonrun.training.foreign.hub import ADAPTER, AUDIO_ENCODER, LLM, SALMONN, WHISPER, Located, locate
from salmonrun.training.foreign.published import SalmonnFile, left_out_layers, lora_config, open_salmonn, qformer_config
from salmonrun.training.foreign.referred import as_referred
from salmonrun.training.foreign.sources import describe_source, read_audio_encoder, read_llm, read_whisper
from salmonrun.training.model.config import LoraConfig, ModelConfig, PartSource, Sources
from salmonrun.training.starting.chat import tokenizer_file
from salmonrun.training.starting.conversion_checks import (
    check_named_parts,
    check_output_layer,
    check_shapes,
    check_tokenizer,
)
from salmonrun.training.starting.prompts import prompt_config
from salmonrun.training.tensors import LazyTensors


@dataclass(frozen=True)
class ConversionReport:
    """What became of every key of the file."""

    used: int
    leftovers: dict[str, str]  # name -> why it is not needed
    left_out_layers: dict[str, tuple[int, ...]]  # of whisper and llm, where the file was pruned
    warnings: tuple[str, ...] = ()  # signs that the parts are not those it was trained on


@dataclass(frozen=True)
class _Parts:
    """Where everything is."""

    whisper: Located
    audio_encoder: Located | None
    llm: Located
    adapter: Located | None
    merge_adapter: bool


@dataclass(frozen=True)
class _Referred:
    """What the checkpoint refers to."""

    whisper: PartSource
    audio_encoder: PartSource | None
    llm: PartSource


def convert_salmonn(
    pth: str | Path,
    out: str | Path,
    *,
    whisper: str | Path,
    audio_encoder: str | Path | None,
    llm: str | Path,
    prompts: str | Path | None = None,
    end_symbol: str | None = None,
    adapter: str | Path | None = None,
    merge_adapter: bool = False,
    prune: bool = False,
) -> ConversionReport:
    """Turn a SALMONN `.pth` and the frozen parts it was trained on into a checkpoint folder that refers to them.

    The file and the parts are paths or hub ids: `org/name`, `org/name/file`, either with `@revision`.

    Args:
        pth: the published or self-trained file.
        out: folder to be created.
        whisper: transformers folder or OpenAI .pt.
        audio_encoder: BEATs or EAT .pt, or EAT folder; None if the model was trained without.
        llm: transformers folder with config.json, safetensors and a tokenizer.
        prompts: JSON of task -> prompt or list of prompts; None for our own.
        end_symbol: text that ends an answer; None for the file's own `end_sym`.
        adapter: PEFT folder: the LLM's adapters, where the file has none.
        merge_adapter: add `adapter` to the LLM's weights instead, whenever they are read; the file may have its own.
        prune: leave out the layers that the file lists, even if its config has no `prune: True`.

    Raises:
        CheckpointError: a key is missing, unknown or misshapen, or a part does not fit.
        ConfigError: `merge_adapter` without `adapter`, or settings in the file that make no model.
    """
    if Path(out).exists():  # found out now, and not after gigabytes of hashing
        raise CheckpointError(f"{out} exists; choose another name or remove it")
    if merge_adapter and not adapter:
        raise ConfigError("merge_adapter (--merge-adapter) says what to do with an adapter; pass one (--adapter DIR)")
    file = open_salmonn(locate(pth, SALMONN).path)
    parts = _Parts(
        locate(whisper, WHISPER),
        locate(audio_encoder, AUDIO_ENCODER) if audio_encoder else None,
        locate(llm, LLM),
        locate(adapter, ADAPTER) if adapter else None,
        merge_adapter,
    )
    sources = _sources(file, parts, prune)
    llm_config, llm_tensors = as_referred(sources.llm, *read_llm(parts.llm.path))
    with tokenizer_file(parts.llm.path) as tokenizer_json:
        tokenizer = Tokenizer(tokenizer_json)
        prompt_options = Path(prompts) if prompts else None, end_symbol
        prompt, ending = prompt_config(parts.llm.path, llm_config, tokenizer, file.options, *prompt_options)
        tensors, lora = _adapters(file, parts)
        config = _model_config(file, parts, sources, llm_config, lora, prompt)
        warnings = [
            *check_named_parts(file, parts.whisper, config.whisper.n_mels, parts.llm),
            *check_output_layer(file, llm_config, llm_tensors, tokenizer.vocab_size),
            *check_tokenizer(parts.llm.path, llm_config, tokenizer),
            *_pruning_not_done(file, prune),
            *ending,
        ]
        check_shapes(tensors, config, file.path, warnings)
        config = replace(config, sources=_hashed(sources))
        stored = {name: get().float().contiguous() for name, get in tensors.items()}
        write_checkpoint(config, stored, tokenizer_json, out)
    return ConversionReport(len(file.tensors), file.leftovers, _left_out(sources), tuple(warnings))


def _sources(file: SalmonnFile, parts: _Parts, prune: bool) -> _Referred:
    """What the checkpoint will refer to, not hashed yet."""
    llm_layers, whisper_layers = left_out_layers(file, prune)
    return _Referred(
        replace(_source(parts.whisper), left_out_layers=whisper_layers),
        _source(parts.audio_encoder) if parts.audio_encoder else None,
        replace(
            _source(parts.llm),
            left_out_layers=llm_layers,
            adapter=_source(parts.adapter) if parts.adapter and parts.merge_adapter else None,
        ),
    )


def _source(part: Located) -> PartSource:
    # Links in the hub's cache are named as the files are, what they point to is not.
    return PartSource(os.path.abspath(part.path) if part.hub else str(part.path.resolve()), {}, part.hub)


def _hashed(sources: _Referred) -> Sources:
    return Sources(
        *(_with_hashes(source) if source else None for source in (sources.whisper, sources.audio_encoder, sources.llm))
    )


def _with_hashes(source: PartSource) -> PartSource:
    hashes = describe_source(Path(source.path)).sha256
    return replace(source, sha256=hashes, adapter=_with_hashes(source.adapter) if source.adapter else None)


def _adapters(file: SalmonnFile, parts: _Parts) -> tuple[LazyTensors, LoraConfig | None]:
    """All that the checkpoint stores, and what the LLM's adapters are: the file's own, or those of a PEFT folder."""
    own = lora_config(file, "lora")
    if parts.adapter is None or parts.merge_adapter:
        return file.tensors, own
    if own:
        raise CheckpointError(
            f"{file.path} has adapters of its own; merge those of {parts.adapter.path} into the LLM (--merge-adapter)"
        )
    config, tensors = read_adapter(parts.adapter.path)
    return file.tensors | {f"lora.{name}": get for name, get in tensors.items()}, config


def _model_config(
    file: SalmonnFile,
    parts: _Parts,
    sources: _Referred,
    llm: dict[str, Any],
    lora: LoraConfig | None,
    prompt: PromptConfig,
) -> ModelConfig:
    whisper, _ = as_referred(sources.whisper, *read_whisper(parts.whisper.path))
    return ModelConfig(
        name=parts.llm.name,
        whisper=whisper,
        audio_encoder=read_audio_encoder(parts.audio_encoder.path)[0] if parts.audio_encoder else None,
        qformer=qformer_config(file),
        llm=llm,
        prompt=prompt,
        audio=AudioConfig(n_mels=whisper.n_mels),
        lora=lora,
        whisper_lora=lora_config(file, "whisper_lora"),
    )


def _left_out(sources: _Referred) -> dict[str, tuple[int, ...]]:
    parts = {"whisper": sources.whisper, "llm": sources.llm}
    return {part: source.left_out_layers for part, source in parts.items() if source.left_out_layers}


def _pruning_not_done(file: SalmonnFile, prune: bool) -> list[str]:
    if prune or file.prunes or not (file.pruned_layers or file.whisper_prune):
        return []
    return [
        f"{file.path} lists layers to leave out ({len(file.pruned_layers)} of the LLM, {len(file.whisper_prune)} of "
        "Whisper), but its config has no `prune: True`: they are kept; pass --prune if it was trained without them"
    ]


def format_report(report: ConversionReport) -> str:
    """The report as text, one leftover a line."""
    lines = [f"{report.used} tensors used"]
    lines += [f"layers of {part} left out: {' '.join(map(str, left))}" for part, left in report.left_out_layers.items()]
    return "\n".join(lines + [f"left out: {name} ({reason})" for name, reason in report.leftovers.items()])
