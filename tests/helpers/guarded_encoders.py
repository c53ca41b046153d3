"""Encoders whose weights, positions, and whatever is kept lie beside pages that nobody may touch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from salmonrun.kernels import encoder_reference as reference
from salmonrun.kernels.cpu import load_native
from salmonrun.kernels.formats import F32, Bytes
from tests.helpers.guard_pages import Edge, guarded, guarded_parts
from tests.helpers.native_encoders import (
    NativeEncoder,
    Shape,
    native_norm,
    random_encoder,
    random_floats,
    random_positions,
    same_bits,
)
from tests.helpers.native_llms import native_matrix

GATED = Shape(norm_first=False, norm=False, gated=True, longest=70)
SHAPES = (
    Shape(),
    Shape(rank=17, bits=4),
    GATED,
    replace(GATED, floats=True, head_dim=33),
    replace(GATED, bfloat16=True, head_dim=33),
    Shape(heads=2, head_dim=64, ffn=256, block=128, activation_block=128),  # nothing is filled up
    Shape(heads=2, head_dim=64, ffn=256, floats=True),
    Shape(heads=2, head_dim=64, ffn=256, bfloat16=True),
    Shape(heads=1, head_dim=1, ffn=1, layers=1),
    Shape(heads=1, head_dim=1, ffn=1, layers=1, rank=1, floats=True),
    Shape(heads=1, head_dim=1, ffn=1, layers=1, rank=1, bfloat16=True),
)
POSITIONS = 70


class GuardedEncoder(NativeEncoder):
    """An encoder of the extension, all of whose arrays are guarded."""

    def __init__(self, encoder: reference.Encoder, instruction_set: str, threads: int, edge: Edge) -> None:
        super().__init__(guarded_parts(encoder, edge), instruction_set, threads)
        self._edge = edge

    def forward(self, x: F32, counts: Sequence[int], past: list[Bytes], present: list[Bytes]) -> F32:
        """As `NativeEncoder.forward`."""
        states = guarded(x, self._edge, writable=True)
        before = [guarded(one, self._edge) for one in past]
        filled = [guarded(one, self._edge, writable=True) for one in present]
        self.native.forward(states, guarded(np.array(counts, np.int32), self._edge), before, filled)
        for one, found in zip(present, filled, strict=True):
            one[...] = found
        return np.asarray(states)


def encoders(instruction_set: str, edge: Edge) -> None:
    """Recordings alone and beside each other, of new positions and of what was kept."""
    for shape in SHAPES:
        encoder, x = random_encoder(shape), random_positions(POSITIONS, shape.dim)
        plain = NativeEncoder(encoder, instruction_set, 1)
        _, kept = plain(x[:21])
        for threads in (1, 3):
            tested = GuardedEncoder(encoder, instruction_set, threads, edge)
            for count in (1, 16, 49, POSITIONS):
                same_bits(tested(x[:count]), plain(x[:count]))
            same_bits(tested.forward(x, [POSITIONS], [tested.room(0)], []), plain(x)[0])
            together = ((x[:17], kept), (x, None), (x[5:6], kept))
            same_bits(tested.encode(*together), plain.encode(*together))


def products(instruction_set: str, edge: Edge) -> None:
    """Of rows that overlap, of every number that takes another tile."""
    matrix = random_floats(np.random.default_rng(0), 70, 21, bias=True)
    plain = NativeEncoder(random_encoder(SHAPES[0]), instruction_set, 2).native
    for frames in (3, 4, 5, 8, 9, 19, 250):
        x = random_positions(frames, 7)
        expected = np.empty((frames - 2, 70), np.float32)
        plain.product(native_matrix(matrix), windows(x), expected, True)
        found = guarded(np.zeros_like(expected), edge, writable=True)
        plain.product(native_matrix(guarded_parts(matrix, edge)), windows(guarded(x, edge)), found, True)
        same_bits(found, expected)


def windows(x: F32) -> F32:
    """Three neighbouring rows each, where they lie."""
    rows, columns = x.shape
    return np.lib.stride_tricks.as_strided(x, (rows - 2, 3 * columns), x.strides)


def rows(instruction_set: str, edge: Edge) -> None:
    """What works in place, of sizes that are no whole lanes where that is allowed."""
    operations = load_native().Operations.of(instruction_set)
    encoder = NativeEncoder(random_encoder(SHAPES[0]), instruction_set, 2).native
    norm = random_encoder(SHAPES[0]).layers[0].mlp_norm
    for size in (1, 15, 16, 17, 4097):
        check_row(encoder.gelu, random_positions(1, size), edge)
        weight, bias = random_positions(2, size)
        check_row(operations.layer_norm, random_positions(1, size), edge, weight, bias, 1e-5)
    for count in (1, 3):
        check_row(lambda x: encoder.normalize(native_norm(norm), x), random_positions(count, 72), edge)
    for size in (16, 48):
        check_row(operations.gelu, random_positions(1, size), edge)
        scores, scales, out = (
            random_positions(1, size)[0],
            np.abs(random_positions(1, size, 1))[0],
            np.zeros(64, np.int8),
        )
        expected = operations.weigh(scores.copy(), size - 5, scales, out)
        found = guarded(np.zeros_like(out), edge, writable=True)
        again = operations.weigh(guarded(scores, edge, writable=True), size - 5, guarded(scales, edge), found)
        assert again == expected
        same_bits(found, out)


def check_row(call: Any, x: F32, edge: Edge, *arguments: Any) -> None:
    expected, found = x.copy(), guarded(x, edge, writable=True)
    call(expected, *arguments)
    call(found, *(guarded(one, edge) if isinstance(one, np.ndarray) else one for one in arguments))
    same_bits(found, expected)
