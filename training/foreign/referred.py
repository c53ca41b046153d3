"""Parts a checkpoint refers to and does not take as their files have them: adapters merged, layers left out."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.foreign.adapters import read_adapter
from salmonrun.training.model.config import PartSource, WhisperConfig
from salmonrun.training.model.encoders import AudioEncoderConfig
from salmonrun.training.model.lora import merged_weights
from salmonrun.training.tensors import LazyTensors

C = TypeVar("C", WhisperConfig, AudioEncoderConfig, dict[str, Any])

# Settings that give a layer another role by its number, and the values at which they do not.
BY_NUMBER: dict[str, object] = {"mlp_only_layers": [], "decoder_sparse_step": 1, "first_k_dense_replace": 0}


def as_referred(source: PartSource, config: C, tensors: LazyTensors) -> tuple[C, LazyTensors]:
    """What the checkpoint means by a part that was read from `source`; tensors are still read on demand.

    Raises:
        CheckpointError: the adapter does not fit, or a layer to be left out is not there.
    """
    if source.adapter:
        lora, adapter = read_adapter(Path(source.adapter.path))
        missing = sorted({name.rsplit(".", 1)[0] for name in adapter if f"{name[:-2]}.weight" not in tensors})
        if missing:
            raise CheckpointError(f"{source.adapter.path} adapts {missing[:3]}, which {source.path} does not have")
        tensors = merged_weights(tensors, adapter, lora)
    if not source.left_out_layers:
        return config, tensors
    if isinstance(config, WhisperConfig):
        left = kept_layers(config.layers, source)
        return replace(config, layers=len(left)), renumbered(tensors, "layers.", left)
    if isinstance(config, AudioEncoderConfig):
        raise CheckpointError(f"{source.path}: layers of an audio encoder cannot be left out")
    left = kept_layers(int(config["num_hidden_layers"]), source)
    return shortened(config, left, source.path), renumbered(tensors, "model.layers.", left)


def kept_layers(count: int, source: PartSource) -> list[int]:
    """The numbers of the layers that stay.

    Raises:
        CheckpointError: none would, or one that is to go does not exist.
    """
    gone = set(source.left_out_layers)
    left = [i for i in range(count) if i not in gone]
    if len(left) != count - len(source.left_out_layers) or not left:
        raise CheckpointError(
            f"{source.path} has layers 0 to {count - 1}; {list(source.left_out_layers)} cannot be left out of it: "
            "another size of it, or a list with doubles?"
        )
    return left


def renumbered(tensors: LazyTensors, prefix: str, left: list[int]) -> LazyTensors:
    """The tensors without those of layers that are not in `left`, which are numbered from 0."""
    numbers = {str(old): str(new) for new, old in enumerate(left)}
    kept: LazyTensors = {}
    for name, get in tensors.items():
        if not name.startswith(prefix):
            kept[name] = get
            continue
        number, _, rest = name.removeprefix(prefix).partition(".")
        if number in numbers:
            kept[f"{prefix}{numbers[number]}.{rest}"] = get
    return kept


def shortened(config: dict[str, Any], left: list[int], where: str) -> dict[str, Any]:
    """An LLM's config.json with the layers in `left` alone; `layer_types` is shortened, too.

    Raises:
        CheckpointError: what a layer is depends on its number.
    """
    for key, neutral in BY_NUMBER.items():
        if config.get(key, neutral) != neutral:
            raise CheckpointError(f"{where}: {key} is {config[key]!r}; layers of such an LLM cannot be left out")
    if config.get("use_sliding_window") and "layer_types" not in config:
        raise CheckpointError(f"{where}: use_sliding_window without layer_types; layers of it cannot be left out")
    short = config | {"num_hidden_layers": len(left)}
    if config.get("layer_types"):
        short["layer_types"] = [config["layer_types"][i] for i in left]
    return short
