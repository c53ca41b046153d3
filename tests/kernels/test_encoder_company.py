"""What becomes of a position does not depend on what is computed beside it, or by whom: equal to the bit."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salmonrun.kernels import encoder_reference as reference
from salmonrun.kernels.formats import F32, Bytes
from tests.helpers.native_encoders import (
    Encoded,
    NativeEncoder,
    Shape,
    random_encoder,
    random_positions,
    same_bits,
)

native: Any = pytest.importorskip("salmonrun.kernels.cpu._native")

BEATS = Shape(norm_first=False, norm=False, key_bias=True, gated=True, longest=120)
SHAPES = {
    "whisper": Shape(),
    "whisper, floats, low rank": Shape(floats=True, rank=17),
    "whisper, bfloat16": Shape(bfloat16=True),
    "beats": BEATS,
    "beats, floats": replace(BEATS, floats=True),
    "beats, bfloat16, low rank": replace(BEATS, bfloat16=True, rank=17),
}
LENGTHS = (1, 2, 15, 16, 17, 40, 47, 49, 64, 70)


@dataclass(frozen=True, eq=False)
class Known:
    """New positions of a recording, what was kept of it before, and what becomes of them."""

    x: F32
    past: Bytes | None
    expected: Encoded


@cache
def encoder_of(name: str) -> reference.Encoder:
    return random_encoder(SHAPES[name])


@cache
def native_of(name: str, instruction_set: str, threads: int) -> NativeEncoder:
    """One for all examples: what others leave behind in its memory is company, too."""
    return NativeEncoder(encoder_of(name), instruction_set, threads)


@cache
def known(name: str, past: int, count: int) -> Known:
    """As the reference has it."""
    encoder, x = encoder_of(name), random_positions(past + count, 72, seed=past)
    kept = encoder(x[:past])[1] if past else None
    return Known(x[past:], kept, encoder(x[past:], kept))


KNOWN = [(0, 1), (0, 17), (0, 70), (16, 1), (16, 33), (49, 15)]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(SHAPES)), threads=st.sampled_from([1, 2, 3]))
def test_states_do_not_depend_on_their_company(data: st.DataObject, name: str, threads: int) -> None:
    """Some recordings with known states among others of other content, length and past, in any order."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    tested = native_of(name, data.draw(st.sampled_from(native.instruction_sets())), threads)
    mine = [known(name, *one) for one in data.draw(st.lists(st.sampled_from(KNOWN), min_size=1, max_size=3))]
    recordings: list[tuple[F32, Bytes | None]] = [(one.x, one.past) for one in mine]
    for _ in range(data.draw(st.integers(0, 6))):
        recordings.append((stranger(rng, int(rng.choice(LENGTHS))), past_of(rng, tested)))
    order = rng.permutation(len(recordings)).tolist()
    found = tested.encode(*(recordings[i] for i in order))
    for i, one in enumerate(mine):
        same_bits(found[order.index(i)], one.expected)


def stranger(rng: np.random.Generator, count: int) -> F32:
    """Positions of any size; now and then of numbers that are none."""
    x = rng.normal(0, 10.0 ** rng.uniform(-3, 3), (count, 72)).astype(np.float32)
    if rng.random() < 0.2:
        x[rng.integers(0, count)] = rng.choice(np.array([np.nan, np.inf, 3e38], np.float32))
    return x


def past_of(rng: np.random.Generator, tested: NativeEncoder) -> Bytes | None:
    if rng.random() < 0.5:
        return None
    return rng.integers(0, 256, tested.room(int(rng.integers(1, 50))).shape, np.uint8)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(list(SHAPES)), threads=st.sampled_from([2, 3]))
def test_states_do_not_depend_on_who_computes_them(seed: int, name: str, threads: int) -> None:
    """Encoders and recordings of any content, on every instruction set, by any number of threads: all are alike."""
    rng = np.random.default_rng(seed)
    encoder = random_encoder(SHAPES[name], seed)
    x = [rng.normal(0, 10.0 ** rng.uniform(-2, 2), (int(rng.choice(LENGTHS)), 72)).astype(np.float32) for _ in range(3)]
    _, first = NativeEncoder(encoder, "portable", 1)(x[0])
    recordings = [(x[1], first), (x[2], None)]
    expected = NativeEncoder(encoder, "portable", 1).encode(*recordings)
    for instruction_set in native.instruction_sets():
        for count in (1, threads):
            found = NativeEncoder(encoder, instruction_set, count).encode(*recordings)
            same_bits(found, expected)


def test_slices_are_cut_across_recordings(instruction_set: str) -> None:
    """A slice of rows holds the end of one recording and the beginning of the next, which may be short."""
    for name in SHAPES:
        mine = [known(name, *one) for one in KNOWN]
        for shift in range(0, 6, 2):
            chosen = (mine[shift:] + mine[:shift]) * 5  # 825 positions
            found = native_of(name, instruction_set, 3).encode(*((one.x, one.past) for one in chosen))
            for one, encoded in zip(chosen, found, strict=True):
                same_bits(encoded, one.expected)
