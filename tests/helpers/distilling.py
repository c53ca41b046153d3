"""What tests of distillation share: a teacher of four layers a part, copies of it without some, and recipes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from salmonrun.runtime.config import Pruning
from salmonrun.training.checkpoint import open_checkpoint
from salmonrun.training.data.config import DataConfig, DataSet
from salmonrun.training.distillation.recipe import DistillConfig, DistillRecipe
from salmonrun.training.finetuning.recipe import RunConfig, TrainedParts
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.pruning.layers import Part
from salmonrun.training.pruning.prune import write
from salmonrun.training.pruning.removal import remove_layers, whole_layers
from salmonrun.training.starting.presets import preset

EVERYTHING = TrainedParts(whisper=True, audio_encoder=True, qformer=True, llm=True)


def four_layers() -> ModelConfig:
    """Four layers a part."""
    tiny = preset("tiny")
    assert tiny.audio_encoder
    return replace(
        tiny,
        whisper=replace(tiny.whisper, layers=4),
        audio_encoder=replace(tiny.audio_encoder, layers=4),
        llm=tiny.llm | {"num_hidden_layers": 4},
        audio=replace(tiny.audio, window="trimmed", min_s=0.5),
    )


def leave_out(checkpoint: Path, out: Path, gone: Mapping[Part, Sequence[int]]) -> Path:
    """Write a checkpoint without these layers: its folder."""
    left = open_checkpoint(checkpoint)
    for part, numbers in gone.items():
        whole, kept = whole_layers(left.config, part)
        stays = tuple(original for layer, original in enumerate(kept) if layer not in numbers)
        step = Pruning(part, "dropped", "a test", "0" * 64, whole, stays, "loss", "one-shot", None)
        left = remove_layers(left, part, numbers, step)
    write(left, out)
    return out


def distill_recipe(student: Path, teacher: Path, annotation: Path, out: Path, **settings: Any) -> DistillRecipe:
    """Of everything, in steps of two recordings; settings are those of DistillConfig or of the run."""
    of_teacher = {name: settings.pop(name) for name in list(settings) if name in DistillConfig.__dataclass_fields__}
    run = {"steps": 4, "batch_size": 2, "lr": 1e-3, "warmup_steps": 1, "log_every": 1, "save_every": 2, **settings}
    return DistillRecipe(
        str(student),
        DataConfig((DataSet(str(annotation)),)),
        RunConfig(str(out), **run),
        EVERYTHING,
        distill=DistillConfig(str(teacher), **of_teacher),
    )
