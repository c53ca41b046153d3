"""Which parameters a run changes."""

from dataclasses import replace

from torch import nn

from salmonrun.runtime.errors import ConfigError
from salmonrun.training.finetuning.recipe import TrainedParts
from salmonrun.training.model.config import SOURCED
from salmonrun.training.model.lora import base_parameters, lora_parameters
from salmonrun.training.model.salmonn import SalmonnModel


def choose_parts(model: SalmonnModel, parts: TrainedParts) -> None:
    """Freeze all but the chosen parts, and store what changes: it no longer is what its source holds.

    Raises:
        ConfigError: nothing is left to train.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    chosen: list[tuple[bool, list[nn.Parameter]]] = [
        (parts.whisper, list(base_parameters(model.whisper).values())),
        (parts.whisper_lora, list(lora_parameters(model.whisper).values())),
        (parts.audio_encoder, list(model.audio_encoder.parameters()) if model.audio_encoder else []),
        (parts.qformer, list(model.qformer.parameters())),
        (parts.llm, list(base_parameters(model.llm).values())),
        (parts.lora, list(lora_parameters(model.llm).values())),
    ]
    for trained, parameters in chosen:
        for tensor in parameters if trained else []:
            tensor.requires_grad_(True)
    model.whisper.embed_positions.weight.requires_grad_(False)  # a fixed table
    changed = {part: None for part in SOURCED if getattr(parts, part)}
    model.config = replace(model.config, sources=replace(model.config.sources, **changed))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"nothing is trained: all of {parts} are off or absent")
