"""Products of an encoder's layers: q, k and v are one, since they share an input, and so are two thin matrices."""

import re

_QKV = ".qkv_proj"


def encoder_product(matrix: str) -> str:
    """The product that a matrix of a layer is part of, both named without `.weight`."""
    return re.sub(r"\.[qkv]_proj$", _QKV, re.sub(r"\.(?:down|up)$", "", matrix))


def matrices_of(product: str) -> tuple[str, ...]:
    """The matrices of a product; of two thin ones, the one in whose place they are."""
    stem = product.removesuffix(_QKV)
    return (product,) if stem == product else tuple(f"{stem}.{part}_proj" for part in "qkv")
