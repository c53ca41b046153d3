"""The demo checkpoint with layers planted into it that change nothing."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from salmonrun.training.checkpoint import Checkpoint, open_checkpoint
from salmonrun.training.model.encoders.beats import BeatsConfig
from salmonrun.training.pruning.prune import write
from salmonrun.training.tensors import LazyTensors, lazy

# What a layer of a part adds to what it is given: zeros there, and it adds nothing.
ADDED = {"llm": ("o_proj", "down_proj"), "whisper": ("out_proj", "fc2"), "audio_encoder": ("out_proj", "fc2")}
PREFIXES = {"llm": "model.layers.", "whisper": "layers.", "audio_encoder": "encoder.layers."}


def plant(checkpoint: Path, out: Path, places: dict[str, int]) -> None:
    """Write the checkpoint with a further layer in each part, of which it is the one of this number."""
    source = open_checkpoint(checkpoint)
    config, parts = source.config, dict(source.parts)
    for part, place in places.items():
        parts[part] = _planted(parts[part], part, place)
    encoder = config.audio_encoder
    assert isinstance(encoder, BeatsConfig)
    config = replace(
        config,
        llm=config.llm | {"num_hidden_layers": config.llm["num_hidden_layers"] + ("llm" in places)},
        whisper=replace(config.whisper, layers=config.whisper.layers + ("whisper" in places)),
        audio_encoder=encoder.with_layers(encoder.layers + ("audio_encoder" in places)),
    )
    write(Checkpoint(source.folder, config, parts), out)


def _planted(tensors: LazyTensors, part: str, place: int) -> LazyTensors:
    prefix, planted = PREFIXES[part], {}
    for name, get in tensors.items():
        value = _unit(name, get()) if part == "audio_encoder" else get()
        if not name.startswith(prefix):
            planted[name] = value
            continue
        number, _, rest = name.removeprefix(prefix).partition(".")
        planted[f"{prefix}{int(number) + (int(number) >= place)}.{rest}"] = value
        if int(number) == place - 1:
            nothing = any(f"{layer}." in rest for layer in ADDED[part])
            planted[f"{prefix}{place}.{rest}"] = torch.zeros_like(value) if nothing else value.clone()
    return lazy(planted)


def _unit(name: str, value: Tensor) -> Tensor:
    """A norm behind a layer that adds nothing is only the identity if that before it neither scales nor shifts.

    Those of the demo hardly do: its answers stay what they are.
    """
    if "encoder." not in name or "layer_norm" not in name:
        return value
    return torch.ones_like(value) if name.endswith("weight") else torch.zeros_like(value)
