"""Encoders of shapes, and recordings of lengths, at the edges of what the kernels take at once: equal to the bit."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from salmonrun.kernels.formats import F32
from tests.helpers.native_encoders import (
    Encoded,
    NativeEncoder,
    Shape,
    in_blocks,
    random_encoder,
    random_positions,
    same_bits,
)

native: Any = pytest.importorskip("salmonrun.kernels.cpu._native")

ONE = Shape(heads=2, ffn=33, layers=1, gated=True, norm_first=False, norm=False, longest=600)
HEADS = {f"heads of {width}": replace(ONE, head_dim=width) for width in (1, 8, 16, 24, 31, 33, 48, 64, 65, 80)}
SIZES = {
    "one of everything": Shape(heads=1, head_dim=1, ffn=1, layers=1),
    "one of everything, low rank": Shape(heads=1, head_dim=1, ffn=1, layers=1, rank=1),
    "one less than a row of whole blocks": Shape(heads=1, head_dim=127, ffn=127, layers=1),
    "one more than a row of whole blocks": Shape(heads=3, head_dim=43, ffn=129, layers=1, activation_block=256),
    "whole rows": Shape(heads=2, head_dim=64, ffn=128, layers=1, block=128, activation_block=128),
    "seven heads": Shape(heads=7, head_dim=9, ffn=64, layers=1),
    "ranks beyond a block": Shape(heads=2, head_dim=20, ffn=17, layers=1, rank=130),
}  # fmt: skip
POSITIONS = 67
NUMBERS: dict[str, dict[str, Any]] = {"bytes": {}, "bfloat16": {"bfloat16": True}, "floats": {"floats": True}}


@cache
def specified(shape: Shape, positions: int) -> tuple[Any, F32, Encoded]:
    """An encoder, positions of a recording, and what becomes of them."""
    encoder, x = random_encoder(shape), random_positions(positions, shape.dim)
    return encoder, x, encoder(x)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("name", HEADS | SIZES)
def test_encoders_of_odd_shapes(instruction_set: str, name: str, numbers: str) -> None:
    encoder, x, expected = specified(replace((HEADS | SIZES)[name], **NUMBERS[numbers]), POSITIONS)
    for threads in (1, 3):
        same_bits(NativeEncoder(encoder, instruction_set, threads)(x), expected)


# Around lanes, panels, tiles of queries, and slices of rows, which are each cut another way.
LENGTHS = (1, 2, 15, 16, 17, 31, 33, 47, 48, 49, 63, 64, 65, 96, 97, 127, 129, 287, 288, 289, 577)
SHORT = replace(ONE, head_dim=8, ffn=17)


@pytest.mark.parametrize("positions", LENGTHS)
def test_recordings_of_any_length(instruction_set: str, positions: int) -> None:
    for numbers in NUMBERS if positions < 300 else ("bytes",):
        encoder, x, expected = specified(replace(SHORT, **NUMBERS[numbers]), positions)
        same_bits(NativeEncoder(encoder, instruction_set, 2)(x), expected)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_a_past_of_any_length(instruction_set: str, numbers: str) -> None:
    encoder, x, _ = specified(replace(SHORT, **NUMBERS[numbers]), 129)
    for past, count in ((1, 1), (15, 1), (15, 2), (16, 16), (17, 47), (47, 17), (48, 48), (63, 2), (64, 65), (128, 1)):
        expected = specified_in_two(numbers, past, count)
        same_bits(in_blocks(NativeEncoder(encoder, instruction_set, 2), x[: past + count], past), expected)


@cache
def specified_in_two(numbers: str, past: int, count: int) -> Encoded:
    encoder, x, _ = specified(replace(SHORT, **NUMBERS[numbers]), 129)
    return in_blocks(encoder, x[: past + count], past)


@cache
def specified_of_other_widths(numbers: str) -> tuple[Any, list[tuple[F32, Encoded]]]:
    """An encoder, and what becomes of recordings."""
    ranks = {300: 33, 41: 15}
    wide, narrow = (random_encoder(Shape(ffn=ffn, layers=1, rank=ranks[ffn], **NUMBERS[numbers])) for ffn in ranks)
    encoder = replace(wide, layers=[*wide.layers, *narrow.layers, *wide.layers])
    recordings = [random_positions(count, 72) for count in (70, 3, 20)]
    return encoder, [(x, encoder(x)) for x in recordings]


@pytest.mark.parametrize("numbers", NUMBERS)
def test_layers_of_other_widths(instruction_set: str, numbers: str) -> None:
    """What a layer has left behind does not reach the next, whichever is wider; nor does a longer recording."""
    encoder, recordings = specified_of_other_widths(numbers)
    tested = NativeEncoder(encoder, instruction_set, 2)
    for x, expected in recordings:
        same_bits(tested(x), expected)
        nothing = np.full_like(x, np.nan)  # what is no number stays no longer, either
        tested.forward(nothing, [len(x)], [tested.room(0)], [])


def test_sums_over_a_past_that_floats_do_not_hold(instruction_set: str) -> None:
    """Beyond 2 ** 24, where integers are rounded: 2001 values near their largest, all of full weight."""
    encoder, x, _ = specified(Shape(heads=1, head_dim=300, ffn=9, layers=1, activation_block=32), 18)
    past = np.zeros((1, 2001, 608), np.uint8)
    past[:, :, 300:600] = np.random.default_rng(0).integers(110, 128, (1, 2001, 300))
    past[:, :, 600:].view(np.float32)[:] = 1, 1e5  # of values as large as that, so that they outweigh the new ones
    same_bits(NativeEncoder(encoder, instruction_set, 2)(x, past), encoder(x, past))


def test_a_recording_may_be_as_long_as_its_bias_and_no_longer(instruction_set: str) -> None:
    for longest in (1, 16, 65):
        shape = replace(SHORT, longest=longest)
        encoder, x, expected = specified(shape, longest)
        tested = NativeEncoder(encoder, instruction_set, 2)
        same_bits(tested(x), expected)
        more = np.concatenate([x, x[:1]])
        with pytest.raises(
            ValueError, match=f"{longest + 1} positions of a recording; the encoder has room for {longest}"
        ):
            tested(more)
        if longest > 1:
            same_bits(in_blocks(tested, x, longest - 1), in_blocks(encoder, x, longest - 1))
