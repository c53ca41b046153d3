"""Products of the LLM's layers: matrices that share an input, and so the number of their bits."""

import re
from collections.abc import Iterable

# The kernels take q, k and v at once, and gate and up. Experts have one format in all of a layer, and stay as they are.
_MATRIX = re.compile(r"(model\.layers\.\d+\.)(self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.weight")
_PRODUCT = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}


def products(tensors: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Name of a product, as `model.layers.0.mlp.gate_up`, to its matrices, named without `.weight`."""
    found: dict[str, tuple[str, ...]] = {}
    for match in filter(None, map(_MATRIX.fullmatch, tensors)):
        layer, matrix = match.groups()
        part, _, kind = matrix.removesuffix("_proj").partition(".")
        name = f"{layer}{part}.{_PRODUCT.get(kind, kind)}"
        found[name] = (*found.get(name, ()), layer + matrix)
    return found
