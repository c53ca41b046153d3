"""A part without some of its layers, as pruned models have it."""

from typing import Any

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.model.config import PartSource
from salmonrun.training.tensors import LazyTensors

# Settings that give a layer another role by its number, and the values at which they do not.
BY_NUMBER: dict[str, object] = {"mlp_only_layers": [], "decoder_sparse_step": 1, "first_k_dense_replace": 0}


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
