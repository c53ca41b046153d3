"""The LLM's tensors as files for decoders name and order them: experts stacked, layer after layer."""

import re
from collections.abc import Callable

from torch import Tensor

from salmonrun.training.model.experts import EXPERTS
from salmonrun.training.tensors import LazyTensors

Getter = Callable[[], Tensor]
_NUMBERS = re.compile(r"(\d+)")
_EXPERT = re.compile(r"(.+\.mlp\.experts)\.\d+\.(\w+)\.weight")


def place(name: str) -> list[tuple[int, str]]:
    """Names in the order of the numbers in them."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in _NUMBERS.split(name)]


def stacked(tensors: LazyTensors, family: str) -> dict[str, list[Getter]]:
    """The tensors under the names of the file: of a layer's experts one for all, whatever the family calls them."""
    names = EXPERTS.get(family)
    if names is None:
        return {name: [get] for name, get in tensors.items()}
    parts = {names.gate: "gate_proj", names.up: "up_proj", names.down: "down_proj"}
    stored: dict[str, list[Getter]] = {}
    for name in sorted(tensors, key=place):  # experts by their numbers
        renamed = name.replace(f".{names.block}.", ".mlp.")
        expert = _EXPERT.fullmatch(renamed)
        stored.setdefault(f"{expert[1]}.{parts[expert[2]]}.weight" if expert else renamed, []).append(tensors[name])
    return stored
