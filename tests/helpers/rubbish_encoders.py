"""Encoders of random bytes, in a process of its own: `python -m tests.helpers.rubbish_encoders EXTENSION SEED COUNT`.

Weights, scales, norms, gates, positions, and what was kept of them may be anything, infinite and no numbers included:
what comes out is the same on every instruction set. It ends by a signal where something beside the arrays was touched.
"""

import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from salmonrun.kernels.cpu import load_native
from salmonrun.kernels.formats import F32, Bytes
from salmonrun.runtime.arrays import Array
from tests.helpers.guard_pages import EDGES
from tests.helpers.guarded_encoders import GuardedEncoder
from tests.helpers.native_build import use
from tests.helpers.native_encoders import NativeEncoder, Shape, random_encoder

Rng = np.random.Generator
T = TypeVar("T")
WIDTHS = (1, 7, 16, 24, 64)
COUNTS = (1, 2, 15, 17, 33, 49)


def main() -> None:
    extension, seed, count = sys.argv[1:]
    use(Path(extension))
    for index in range(int(count)):
        case(np.random.default_rng((int(seed), index)), index)


def case(rng: Rng, index: int) -> None:
    """One encoder, and two recordings at once, one of which has a past."""
    encoder = spoilt(rng, random_encoder(random_shape(rng), index), float(rng.choice([0.02, 0.2, 1])))
    dim = len(encoder.layers[0].attention_norm.weight)
    plain = NativeEncoder(encoder, "portable", 1)
    first, second = (positions(rng, int(rng.choice(COUNTS)), dim) for _ in range(2))
    past = plain.room(int(rng.choice(COUNTS)))
    recordings: list[tuple[F32, Bytes | None]] = [(first, rubbish(rng, past)), (second, None)]
    expected = plain.encode(*recordings)
    for instruction_set in load_native().instruction_sets():
        guarded = GuardedEncoder(encoder, instruction_set, 1 + index % 3, EDGES[index % 2])
        for (states, kept), (others, other_kept) in zip(guarded.encode(*recordings), expected, strict=True):
            same_numbers(states, others)
            dtype = np.uint8 if encoder.cache_dtype is np.int8 else np.float32
            same_numbers(kept.view(dtype), other_kept.view(dtype))


def random_shape(rng: Rng) -> Shape:
    block, numbers = int(rng.choice([32, 64, 128])), str(rng.choice(["integers", "integers", "floats", "bfloat16"]))
    return Shape(
        heads=int(rng.integers(1, 4)),
        head_dim=int(rng.choice(WIDTHS)),
        ffn=int(rng.choice([1, 16, 33, 140])),
        layers=int(rng.integers(1, 3)),
        norm_first=bool(rng.random() < 0.5),
        norm=bool(rng.random() < 0.5),
        gated=bool(rng.random() < 0.5),
        longest=int(rng.choice([98, 99, 150])),
        rank=None if rng.random() < 0.6 else int(rng.integers(1, 40)),
        floats=numbers == "floats",
        bfloat16=numbers == "bfloat16",
        bits=8 if rng.random() < 0.7 else 4,
        block=block,
        activation_block=block * int(rng.choice([1, 2])),
    )


def spoilt(rng: Rng, part: T, share: float) -> T:
    """A dataclass or a list of them; so many of all arrays are of random bytes."""
    if isinstance(part, list):
        return [spoilt(rng, item, share) for item in part]  # type: ignore[return-value]
    if isinstance(part, np.ndarray):
        return rubbish(rng, part) if rng.random() < share else part
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{field.name: spoilt(rng, getattr(part, field.name), share) for field in fields(part)})
    return part


def rubbish(rng: Rng, like: Array) -> Any:
    """Of the same dtype and shape: any bytes, or numbers among which some are none."""
    if like.dtype == np.uint16:  # bfloat16, of which processors take subnormal numbers for zeros, each in its own way
        floats = rubbish(rng, np.zeros(like.shape, np.float32))
        return (np.where(np.abs(floats) < 1e-18, 0, floats).view(np.uint32) >> 16).astype(np.uint16)
    if like.dtype == np.uint8 or rng.random() < 0.3:
        return rng.integers(0, 256, like.nbytes, np.uint8).view(like.dtype).reshape(like.shape)
    numbers = rng.normal(0, 10.0 ** rng.uniform(-3, 3), like.shape).astype(like.dtype)
    worst = np.array([np.nan, np.inf, -np.inf, 65504, 1e-45, -0.0], np.float32).astype(like.dtype)
    chosen = rng.random(like.shape) < rng.choice([0.01, 0.3])
    numbers[chosen] = rng.choice(worst, int(chosen.sum()))
    return numbers


def positions(rng: Rng, count: int, dim: int) -> F32:
    x = rng.normal(0, 1, (count, dim)).astype(np.float32)
    return rubbish(rng, x) if rng.random() < 0.3 else x


def same_numbers(found: Array, expected: Array) -> None:
    """To the bit, but for what is no number: which one of those may differ."""
    if found.dtype == np.float32:
        found, expected = (
            np.where(np.isnan(one), np.float32(np.nan), one).view(np.uint32) for one in (found, expected)
        )
    np.testing.assert_array_equal(found, expected)


if __name__ == "__main__":
    main()
