"""Changes of a draft, and of its bytes: each keeps most of it, so that what is wrong is found late, if at all."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from salmonrun.runtime.tensor_file import DTYPES
from tests.fuzz.drafts import Draft, Rng, random_draft

NUMBERS = (
    *(-(2**63), -(2**31), -64, -1, 0, 1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 256),
    *(2**power + step for power in (15, 16, 24, 31, 32, 63, 64, 80) for step in (-1, 0, 1)),
)
OTHERS: tuple[Any, ...] = (None, True, "64", 1.5, math.nan, math.inf, -0.0, 1e300, 1e-300, [], {}, [[]], "x" * 100)
# Zeros, ones, and halves and floats that are infinite, no number, the largest or nearly nothing.
PATTERNS = tuple(
    bytes.fromhex(text) for text in ("00", "ff", "7f", "007c", "00fc", "ff7b", "0000807f", "ffff7f7f", "01000000")
)


def mutant(rng: Rng) -> tuple[dict[str, Any], bytes]:
    """What a manifest says of an LLM, and its file of weights."""
    draft = random_draft(rng)
    for _ in range(int(rng.choice([0, 0, 0, 1, 1, 2]))):  # few, since nearly every one is refused
        CHANGES[int(rng.integers(len(CHANGES)))](rng, draft)
    content = draft.content()
    data = len(content) - len(draft.data)  # where the bytes of the tensors begin
    for _ in range(int(rng.integers(0, 4))):
        damages = NUMERIC if rng.random() < 0.8 else DAMAGES
        damages[int(rng.integers(len(damages)))](rng, content, data)
    return draft.llm, bytes(content)


def other_number(rng: Rng, value: Any) -> Any:
    """Near the old one, at the edge of something, or no number at all."""
    kind = rng.random()
    if isinstance(value, int) and kind < 0.5:
        near = (value - 1, value + 1, 2 * value, value // 2, -value, value + 16, value - 16, value + 64, value + 2**32)
        return near[int(rng.integers(len(near)))]
    if isinstance(value, int) and kind < 0.6:
        return float(value)
    choices: tuple[Any, ...] = NUMBERS if kind < 0.9 else OTHERS
    return choices[int(rng.integers(len(choices)))]


def change_manifest(rng: Rng, draft: Draft) -> None:
    """A number of the LLM, or of its weights."""
    weights = draft.llm["weights"]["native"]
    places: list[tuple[Any, Any]] = [(draft.llm, key) for key in draft.llm if key not in ("weights", "embedding")]
    places += [(weights, key) for key in weights]
    if isinstance(draft.llm["windows"], list):
        places += [(draft.llm["windows"], index) for index in range(len(draft.llm["windows"]))]
    holder, key = places[int(rng.integers(len(places)))]
    if key in ("precision", "lm_head"):
        holder[key] = {"int4": "int8", "int8": "int4"}.get(holder[key], "int4")
    else:
        holder[key] = other_number(rng, holder[key])


def change_manifest_and_header(rng: Rng, draft: Draft) -> None:
    """A size of the LLM, and the same number wherever a shape has it; bytes are said to go with it."""
    sizes = [key for key, value in draft.llm.items() if type(value) is int]
    if not sizes:
        return
    key = sizes[int(rng.integers(len(sizes)))]
    old = draft.llm[key]
    new = draft.llm[key] = other_number(rng, old)
    for found in draft.header.values():
        if isinstance(found, dict) and isinstance(found.get("shape"), list):
            found["shape"] = [new if size == old else size for size in found["shape"]]
            fit_offsets(found)


def change_shape(rng: Rng, draft: Draft) -> None:
    """A dimension of one tensor, its offsets as the shape says or as they were."""
    found = any_tensor(rng, draft)
    if found and isinstance(found.get("shape"), list) and found["shape"]:
        index = int(rng.integers(len(found["shape"])))
        found["shape"][index] = other_number(rng, found["shape"][index])
        if rng.random() < 0.7:
            fit_offsets(found)


def change_width(rng: Rng, draft: Draft) -> None:
    """The width of the feed-forward layers: no key of the manifest says it, so shapes are believed."""
    width = other_number(rng, 2)
    for name, found in draft.header.items():
        if "mlp" in name and isinstance(found, dict) and isinstance(found.get("shape"), list) and found["shape"]:
            if "down_proj" not in name:
                found["shape"][0] = width
            fit_offsets(found)


def change_offsets(rng: Rng, draft: Draft) -> None:
    found = any_tensor(rng, draft)
    if not found or not isinstance(found.get("data_offsets"), list) or len(found["data_offsets"]) != 2:
        return
    offsets = found["data_offsets"]
    if rng.random() < 0.5:  # somewhere else, of the size it had
        shift = 64 * int(rng.integers(-200, 200)) if rng.random() < 0.8 else int(rng.choice([1, 2, 4, 32]))
        found["data_offsets"] = [offset + shift if isinstance(offset, int) else offset for offset in offsets]
    else:
        index = int(rng.integers(2))
        offsets[index] = other_number(rng, offsets[index])


def change_entry(rng: Rng, draft: Draft) -> None:
    """A tensor is another one, has another type, or is not there."""
    names = list(draft.header)
    if not names:
        return
    one, other = (names[int(index)] for index in rng.integers(0, len(names), 2))
    kind = int(rng.integers(4))
    if kind == 0:
        del draft.header[one]
    elif kind == 1:
        draft.header[one] = draft.header[other]
    elif kind == 2:
        draft.header[one] = OTHERS[int(rng.integers(len(OTHERS)))]
    elif isinstance(draft.header[one], dict):
        draft.header[one] = draft.header[one] | {"dtype": str(rng.choice(["U8", "F16", "F32", "BF16", "I64", ""]))}


def any_tensor(rng: Rng, draft: Draft) -> dict[str, Any] | None:
    names = list(draft.header)
    found = draft.header[names[int(rng.integers(len(names)))]] if names else None
    return found if isinstance(found, dict) else None


def fit_offsets(found: dict[str, Any]) -> None:
    """As the shape says, where it is one."""
    shape, offsets = found.get("shape"), found.get("data_offsets")
    if not (isinstance(shape, list) and isinstance(offsets, list) and offsets and found.get("dtype") in DTYPES):
        return
    if all(isinstance(number, int) for number in (*shape, offsets[0])):
        size = math.prod(shape) * DTYPES[found["dtype"]].itemsize
        begin = max(offsets[0], -size)  # a negative size ends in front of where it begins
        found["data_offsets"] = [begin, begin + size]


CHANGES: tuple[Callable[[Rng, Draft], None], ...] = (
    change_manifest,
    change_manifest_and_header,
    change_shape,
    change_width,
    change_offsets,
    change_entry,
)


def flip_bits(rng: Rng, content: bytearray, data: int) -> None:
    """Anywhere: length, header, weights."""
    begin = 0 if rng.random() < 0.3 else data
    for place in rng.integers(begin, max(begin + 1, len(content)), int(rng.integers(1, 9))):
        if place < len(content):
            content[place] ^= 1 << int(rng.integers(8))


def change_text(rng: Rng, content: bytearray, data: int) -> None:
    """A byte of the header: a digit, a bracket, a letter."""
    place = int(rng.integers(8, max(9, data)))
    if place < len(content):
        content[place] = int(rng.choice(np.frombuffer(b'0123456789-.eE"[]{},: \x00\xff', np.uint8)))


def change_length(rng: Rng, content: bytearray, data: int) -> None:
    """How long the header is said to be."""
    number = NUMBERS[int(rng.integers(len(NUMBERS)))] if rng.random() < 0.5 else data - 8 + int(rng.integers(-3, 4))
    content[:8] = (number % 2**64).to_bytes(8, "little")


def fill(rng: Rng, content: bytearray, data: int) -> None:
    """Weights and scales with numbers that are special."""
    if len(content) <= data:
        return
    begin = int(rng.integers(data, len(content)))
    size = int(rng.integers(1, len(content) - begin + 1))
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
    content[begin : begin + size] = (pattern * (size // len(pattern) + 1))[:size]


def cut(rng: Rng, content: bytearray, data: int) -> None:
    """At the end, or anywhere."""
    low = max(0, len(content) - 130) if rng.random() < 0.7 else 0
    del content[int(rng.integers(low, len(content) + 1)) :]


def extend(rng: Rng, content: bytearray, data: int) -> None:
    content.extend(rng.bytes(int(rng.integers(1, 200))))


NUMERIC: tuple[Callable[[Rng, bytearray, int], None], ...] = (flip_bits, fill, fill, extend)
DAMAGES = (*NUMERIC, change_text, change_length, cut)
