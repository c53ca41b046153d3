"""A pruned checkpoint as the `.pth` of NOTA-09: what was trained, and the numbers of the layers left out."""

import os
import re
from pathlib import Path
from typing import Any

import torch

from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.checkpoint import Checkpoint, open_checkpoint
from salmonrun.training.foreign.published import BERT_HEAD_DIM
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.model.features import FRAMES_PER_S

BERT = r"speech_Qformer.bert."
LAYER = rf"{BERT}encoder.layer.\1."
# Our name -> the published one; `foreign.names` has the way back.
PUBLISHED_NAMES = (
    (r"qformer\.(ln_speech|ln_audio)\.(\w+)", r"\1.\2"),
    (r"qformer\.query_tokens", r"speech_query_tokens"),
    (r"qformer\.proj\.(\w+)", r"speech_llama_proj.\1"),
    (r"qformer\.embed_norm\.(\w+)", rf"{BERT}embeddings.LayerNorm.\1"),
    (r"qformer\.layers\.(\d+)\.self_attn\.(query|key|value)\.(\w+)", rf"{LAYER}attention.self.\2.\3"),
    (r"qformer\.layers\.(\d+)\.cross_attn\.(query|key|value)\.(\w+)", rf"{LAYER}crossattention.self.\2.\3"),
    (r"qformer\.layers\.(\d+)\.self_attn\.out\.(\w+)", rf"{LAYER}attention.output.dense.\2"),
    (r"qformer\.layers\.(\d+)\.cross_attn\.out\.(\w+)", rf"{LAYER}crossattention.output.dense.\2"),
    (r"qformer\.layers\.(\d+)\.self_attn\.norm\.(\w+)", rf"{LAYER}attention.output.LayerNorm.\2"),
    (r"qformer\.layers\.(\d+)\.cross_attn\.norm\.(\w+)", rf"{LAYER}crossattention.output.LayerNorm.\2"),
    (r"qformer\.layers\.(\d+)\.fc1\.(\w+)", rf"{LAYER}intermediate_query.dense.\2"),
    (r"qformer\.layers\.(\d+)\.fc2\.(\w+)", rf"{LAYER}output_query.dense.\2"),
    (r"qformer\.layers\.(\d+)\.norm\.(\w+)", rf"{LAYER}output_query.LayerNorm.\2"),
    (r"lora\.(.+)\.([AB])", r"llama_model.base_model.model.\1.lora_\2.default.weight"),
    (r"whisper_lora\.(.+)\.([AB])", r"speech_encoder.base_model.model.\1.lora_\2.default.weight"),
)


def write_published(checkpoint: str | Path, path: str | Path) -> None:
    """Write the `.pth`; `salmonrun convert` reads it back, with the parts that the checkpoint refers to.

    Args:
        checkpoint: whose LLM, Whisper and audio encoder are referred to, as frozen parts are.
        path: of the file.

    Raises:
        CheckpointError: `path` exists, or the checkpoint cannot be read.
        ConfigError: the layout has no place for what the checkpoint is.
    """
    path = Path(path)
    if path.exists():
        raise CheckpointError(f"{path} exists; choose another name or remove it")
    source = open_checkpoint(checkpoint)
    _check(source.config, str(checkpoint))
    content = {
        "model": _state(source),
        "config": {"model": _options(source.config)},
        "pruned_layers": list(source.config.left_out_layers("llm")),
        "whisper_prune": list(source.config.left_out_layers("whisper")),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(content, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _state(source: Checkpoint) -> dict[str, torch.Tensor]:
    state = {}
    for part in ("qformer", "lora", "whisper_lora"):
        for name, get in source.parts[part].items():
            full = f"{part}.{name}"
            pattern, to = next(pair for pair in PUBLISHED_NAMES if re.fullmatch(pair[0], full))
            value = get()
            state[re.sub(pattern, to, full)] = value[None] if name == "query_tokens" else value
    return state


def _check(config: ModelConfig, where: str) -> None:
    """Raise ConfigError where the layout has no place for something."""
    lora, whisper_lora = config.lora, config.whisper_lora
    for part in ("llm", "whisper", "audio_encoder"):
        if getattr(config, part) is not None and getattr(config.sources, part) is None:
            raise ConfigError(
                f"{where} stores {part}, of which the published layout has no weights: begin with parts that are "
                "referred to (salmonrun init without --copy), drop layers and do not merge them, and train adapters"
            )
    if config.left_out_layers("audio_encoder"):
        raise ConfigError(f"{where} goes without layers of its audio encoder, which the published layout cannot say")
    if config.left_out_layers("whisper") and whisper_lora is None:
        raise ConfigError(
            f"{where} goes without layers of Whisper, and NOTA-09 prunes Whisper with whisper_lora: True only: train "
            "adapters on it first (whisper_lora in a recipe, see recipes/nota-09.yaml)"
        )
    if lora and whisper_lora and lora.alpha != whisper_lora.alpha:
        raise ConfigError(
            f"lora.alpha is {lora.alpha:g} and whisper_lora.alpha {whisper_lora.alpha:g}; the published layout has one"
        )
    if config.qformer.heads != max(1, config.qformer.dim // BERT_HEAD_DIM):
        raise ConfigError(
            f"qformer.heads is {config.qformer.heads} at dim {config.qformer.dim}; the published layout has one head "
            f"for each {BERT_HEAD_DIM}"
        )


def _options(config: ModelConfig) -> dict[str, Any]:
    """The `model` of the file's own config, as SALMONN names its settings."""
    window, lora = config.qformer.window, config.lora or config.whisper_lora
    options: dict[str, Any] = {
        "use_speech_Qformer": True,
        "window_level_Qformer": True,
        "num_speech_query_token": window.num_queries,
        "second_per_window": window.frames / FRAMES_PER_S,
        "second_stride": window.stride / FRAMES_PER_S,
        "lora": config.lora is not None,
        "whisper_lora": config.whisper_lora is not None,
        "prune": bool(config.left_out_layers("llm") or config.left_out_layers("whisper")),
        "prompt_template": config.prompt.template,
        "end_sym": config.prompt.end_symbol,
    }
    if lora:
        options |= {"lora_rank": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    return options
