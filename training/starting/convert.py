"""SALMONN and Nota `.pth` files into a checkpoint folder; every key is accounted for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from salmonrun.runtime.config import AudioConfig, PromptConfig
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.checkpoint import write_checkpoint
from salmonrun.training.foreign.adapters import read_adapter
from salmonrun.training.foreign.hub import ADAPTER, AUDIO_ENCODER, LLM, SALMONN, WHISPER, locate, source_name
from salmonrun.training.foreign.part_checks import check_encoder, check_llm
from salmonrun.training.foreign.part_files import read_audio_encoder, read_llm, read_whisper
from salmonrun.training.foreign.published import SalmonnFile, left_out_layers, lora_config, open_salmonn, qformer_config
from salmonrun.training.foreign.sources import pin_source, read_source
from salmonrun.training.model.config import LoraConfig, ModelConfig, PartSource, Sources
from salmonrun.training.starting.chat import tokenizer_file
from salmonrun.training.starting.conversion_checks import (
    check_named_parts,
    check_output_layer,
    check_shapes,
    check_tokenizer,
)
from salmonrun.training.starting.prompts import prompt_config
from salmonrun.training.tensors import LazyTensors, read_sizes


@dataclass(frozen=True)
class Unstored:
    """What no published file says. None: as the published code has it."""

    qformer_heads: int | None = None
    max_s: float | None = None  # seconds of audio that the model hears at most


@dataclass(frozen=True)
class Conversion:
    """What became of every key of the file."""

    used: int
    leftovers: dict[str, str]  # name -> why it is not needed
    left_out_layers: dict[str, tuple[int, ...]]  # of whisper and llm, where the file was pruned
    warnings: tuple[str, ...] = ()  # signs that the parts are not those it was trained on


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
    qformer_heads: int | None = None,
    max_s: float | None = None,
) -> Conversion:
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
        qformer_heads: of the Q-Former's attention, which no tensor tells; None: heads of 64, as BERT's.
        max_s: longest recording that the model hears; None: Whisper's 30 s. EAT may have positions for less.

    Raises:
        CheckpointError: a key is missing, unknown or misshapen, or a part does not fit.
        ConfigError: `merge_adapter` without `adapter`, or settings in the file that make no model.
    """
    if Path(out).exists():  # now, and not after gigabytes of hashing
        raise CheckpointError(f"{out} exists; choose another name or remove it")
    if merge_adapter and not adapter:
        raise ConfigError("merge_adapter (--merge-adapter) says what to do with an adapter; pass one (--adapter DIR)")
    file = open_salmonn(Path(locate(pth, SALMONN).path))
    sources = Sources(
        locate(whisper, WHISPER), locate(audio_encoder, AUDIO_ENCODER) if audio_encoder else None, locate(llm, LLM)
    )
    peft = locate(adapter, ADAPTER) if adapter else None
    sources = _as_trained(sources, file, prune, peft if merge_adapter else None)
    llm_source, llm_folder = sources.of("llm"), Path(sources.of("llm").path)
    llm_config, llm_tensors = read_source(llm_source, read_llm)
    (rows,) = read_sizes(llm_config, ("vocab_size",), f"{llm_folder / 'config.json'}")
    with tokenizer_file(llm_folder, rows) as tokenizer_json:
        tokenizer = Tokenizer(tokenizer_json)
        prompt_options = Path(prompts) if prompts else None, end_symbol
        prompt, ending = prompt_config(llm_folder, llm_config, tokenizer, file.options, *prompt_options)
        tensors, lora = _stored(file, None if merge_adapter else peft)
        config = _model_config(file, sources, llm_config, lora, prompt, Unstored(qformer_heads, max_s))
        warnings = [
            *check_named_parts(file, sources.of("whisper"), config.whisper.n_mels, llm_source),
            *check_output_layer(file, llm_config, llm_tensors, tokenizer.vocab_size),
            *check_tokenizer(llm_folder, llm_config, tokenizer),
            *_pruning_not_done(file, prune),
            *ending,
        ]
        check_shapes(tensors, config, file.path, warnings)
        _check_parts(sources, llm_config, llm_tensors)
        config = replace(config, sources=sources.map(pin_source))
        stored = {name: get().float().contiguous() for name, get in tensors.items()}
        write_checkpoint(config, stored, tokenizer_json, out)
    left_out = {part: source.left_out_layers for part, source in sources.items() if source.left_out_layers}
    return Conversion(len(file.tensors), file.leftovers, left_out, tuple(warnings))


def _as_trained(sources: Sources, file: SalmonnFile, prune: bool, adapter: PartSource | None) -> Sources:
    """The parts as the file was trained on them: Whisper and the LLM without some layers, an adapter merged."""
    llm_layers, whisper_layers = left_out_layers(file, prune)
    return replace(
        sources,
        whisper=replace(sources.of("whisper"), left_out_layers=whisper_layers),
        llm=replace(sources.of("llm"), left_out_layers=llm_layers, adapter=adapter),
    )


def _stored(file: SalmonnFile, adapter: PartSource | None) -> tuple[LazyTensors, LoraConfig | None]:
    """All that the checkpoint stores, and what the LLM's adapters are: the file's own, or those of a PEFT folder."""
    own = lora_config(file, "lora")
    if adapter is None:
        return file.tensors, own
    if own:
        raise CheckpointError(
            f"{file.path} has adapters of its own; merge those of {adapter.path} into the LLM (--merge-adapter)"
        )
    config, tensors = read_adapter(Path(adapter.path))
    return file.tensors | {f"lora.{name}": get for name, get in tensors.items()}, config


def _model_config(
    file: SalmonnFile,
    sources: Sources,
    llm: dict[str, Any],
    lora: LoraConfig | None,
    prompt: PromptConfig,
    sizes: "Unstored",
) -> ModelConfig:
    whisper, _ = read_source(sources.of("whisper"), read_whisper)
    return ModelConfig(
        name=source_name(sources.of("llm")),
        whisper=whisper,
        audio_encoder=read_source(sources.audio_encoder, read_audio_encoder)[0] if sources.audio_encoder else None,
        qformer=qformer_config(file, sizes.qformer_heads),
        llm=llm,
        prompt=prompt,
        audio=AudioConfig(n_mels=whisper.n_mels).up_to(sizes.max_s),
        lora=lora,
        whisper_lora=lora_config(file, "whisper_lora"),
    )


def _check_parts(sources: Sources, llm: dict[str, Any], llm_tensors: LazyTensors) -> None:
    """Whether the parts that are referred to are whole: nobody looks at their tensors before an export or training.

    Raises:
        CheckpointError: a part lacks a tensor, or has one too many or misshapen.
    """
    whisper, tensors = read_source(sources.of("whisper"), read_whisper)
    check_encoder(whisper, tensors, f"whisper {sources.of('whisper').path}")
    if sources.audio_encoder:
        audio_encoder, tensors = read_source(sources.audio_encoder, read_audio_encoder)
        check_encoder(audio_encoder, tensors, f"audio_encoder {sources.audio_encoder.path}")
    check_llm(llm, llm_tensors)


def _pruning_not_done(file: SalmonnFile, prune: bool) -> list[str]:
    if prune or file.prunes or not (file.pruned_layers or file.whisper_prune):
        return []
    return [
        f"{file.path} lists layers to leave out ({len(file.pruned_layers)} of the LLM, {len(file.whisper_prune)} of "
        "Whisper), but its config has no `prune: True`: they are kept; pass --prune if it was trained without them"
    ]


def format_conversion(conversion: Conversion) -> str:
    """The conversion as text, one leftover a line."""
    lines = [f"{conversion.used} tensors used"]
    lines += [
        f"layers of {part} left out: {' '.join(map(str, left))}" for part, left in conversion.left_out_layers.items()
    ]
    return "\n".join(lines + [f"left out: {name} ({reason})" for name, reason in conversion.leftovers.items()])
