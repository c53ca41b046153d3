"""A checkpoint whose parts go without some of their layers: dropped, or merged into those before them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from salmonrun.runtime.config import Pruning
from salmonrun.runtime.errors import ConfigError
from salmonrun.training.checkpoint import Checkpoint
from salmonrun.training.foreign.layers import renumbered, shortened
from salmonrun.training.model.config import ModelConfig, PartSource
from salmonrun.training.model.experts import EXPERTS
from salmonrun.training.pruning.layers import Part, count_layers, layer_prefix
from salmonrun.training.tensors import LazyTensors

ADAPTERS: dict[Part, str] = {"llm": "lora", "whisper": "whisper_lora"}


def whole_layers(config: ModelConfig, part: Part) -> tuple[int, tuple[int, ...]]:
    """How many layers a part had before any was left out, and which of them it has now."""
    gone, left = config.left_out_layers(part), count_layers(config, part)
    count = left + len(gone)
    return count, tuple(layer for layer in range(count) if layer not in gone)


def remove_layers(source: Checkpoint, part: Part, gone: Sequence[int], step: Pruning) -> Checkpoint:
    """The checkpoint without these layers; those that stay are numbered anew, their adapters with them.

    A part that is referred to stays where it is, and its source names the layers to be left out; one whose layers are
    merged is stored, since its weights change.

    Args:
        source: of any lineage.
        part: whose layers.
        gone: their numbers in `source`.
        step: of the lineage: it says whether they are dropped or merged.

    Raises:
        CheckpointError: what a layer of this LLM is depends on its number.
        ConfigError: see `check_mergeable`.
    """
    config, merged = source.config, step.method == "merged"
    if merged:
        check_mergeable(config, part)
    left = [layer for layer in range(count_layers(config, part)) if layer not in set(gone)]
    prefix = layer_prefix(config, part)
    tensors = _merged(source, part, prefix, left) if merged else source.parts[part]
    parts = source.parts | {part: renumbered(tensors, prefix, left)}
    adapters = ADAPTERS.get(part)
    if adapters:
        kept = _restarted(source, part, prefix, left) if merged else source.parts[adapters]
        parts |= {adapters: renumbered(kept, prefix, left)}
    where: PartSource | None = getattr(config.sources, part)
    if where is not None:
        where = None if merged else replace(where, left_out_layers=_in_files(where, gone))
    config = replace(
        _shortened(config, part, left, str(source.folder)),
        sources=replace(config.sources, **{part: where}),
        pruning=(*config.pruning, step),
    )
    return replace(source, config=config, parts=parts)


def check_mergeable(config: ModelConfig, part: Part) -> None:
    """Whether the mean of two layers of a part says anything.

    Raises:
        ConfigError: layers of low rank, or of experts, are to be merged.
    """
    if part == "whisper" and config.whisper.ranks:
        raise ConfigError("merge averages matrices, and Whisper's are of low rank here: prune before low rank, or drop")
    if part == "llm" and config.llm["model_type"] in EXPERTS:
        raise ConfigError(
            f"merge averages layers, and those of {config.llm['model_type']!r} are mixtures of experts: the experts of "
            "one layer have nothing to do with those of another. Leave out --merge, and layers are dropped"
        )


def _in_files(source: PartSource, gone: Sequence[int]) -> tuple[int, ...]:
    """All layers that are left out of a part's files, as these number them."""
    before = set(source.left_out_layers)
    there = [number for number in range(len(before) + max(gone) + 1) if number not in before]
    return tuple(sorted(before | {there[layer] for layer in gone}))


def _shortened(config: ModelConfig, part: Part, left: list[int], where: str) -> ModelConfig:
    if part == "llm":
        return replace(config, llm=shortened(config.llm, left, where))
    if part == "whisper":
        ranks = config.whisper.ranks
        if ranks is not None:
            numbers = {f"layers.{old}.": f"layers.{new}." for new, old in enumerate(left)}
            ranks = {
                new + name.removeprefix(old): r
                for old, new in numbers.items()
                for name, r in ranks.items()
                if name.startswith(old)
            }
        return replace(config, whisper=replace(config.whisper, layers=len(left), ranks=ranks))
    assert config.audio_encoder is not None, "count_layers refuses it"
    return replace(config, audio_encoder=config.audio_encoder.with_layers(len(left)))


def _groups(source: Checkpoint, part: Part, left: list[int]) -> dict[int, list[int]]:
    """Each layer that stays, with those that are merged into it: the ones behind it, and before the first."""
    groups: dict[int, list[int]] = {layer: [] for layer in left}
    for layer in range(count_layers(source.config, part)):
        groups[max((kept for kept in left if kept <= layer), default=left[0])].append(layer)
    return groups


def _merged(source: Checkpoint, part: Part, prefix: str, left: list[int]) -> LazyTensors:
    """Layers that others are merged into are the mean of them all, their adapters added before."""
    tensors = dict(source.parts[part])
    added = {"llm": source.merged_llm, "whisper": source.merged_whisper}
    whole = added[part]() if part in added else tensors
    for layer, group in _groups(source, part, left).items():
        start = f"{prefix}{layer}."
        for name in [name for name in tensors if name.startswith(start) and len(group) > 1]:
            same = [whole[f"{prefix}{other}.{name.removeprefix(start)}"] for other in group]
            tensors[name] = _mean(same, tensors[name])
    return tensors


def _mean(getters: list[Callable[[], Tensor]], own: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """In float32, and then in the layer's own dtype."""
    return lambda: (sum((get().float() for get in getters), torch.zeros(())) / len(getters)).to(own().dtype)


def _restarted(source: Checkpoint, part: Part, prefix: str, left: list[int]) -> LazyTensors:
    """The adapters, those of merged layers as at the beginning of training: their effect is in the weights."""
    adapters = dict(source.parts[ADAPTERS[part]])
    for layer, group in _groups(source, part, left).items():
        for name, get in adapters.items():
            if len(group) > 1 and name.startswith(f"{prefix}{layer}.") and name.endswith(".B"):
                adapters[name] = _zeros(get)
    return adapters


def _zeros(get: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: torch.zeros_like(get())
