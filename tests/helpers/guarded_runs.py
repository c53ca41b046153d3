"""The kernels on guarded arrays, in a process of its own: `python -m tests.helpers.guarded_runs EXTENSION SET EDGE`.

It ends with 0 where results are those of arrays without guards, and by a signal where something else was touched.
"""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from salmonrun.kernels.cpu import load_native
from salmonrun.kernels.formats import F32
from salmonrun.kernels.reference import Linear
from tests.helpers import guarded_encoders
from tests.helpers.guard_pages import EDGES, PAGE, Edge, GuardedModel, guarded, guarded_parts
from tests.helpers.native_build import use
from tests.helpers.native_llms import NativeModel, Shape, native_matrix, random_linear, random_model, random_super

SHAPES = (
    Shape(max_length=140),
    Shape(max_length=140, super_blocks=True),
    Shape(dim=256, intermediate=128, max_length=70, super_blocks=True, biases=False),
    Shape(max_length=140, cache_bits=8),
    Shape(dim=16, intermediate=1, vocab=1, layers=1, heads=1, kv_heads=1, head_dim=16, max_length=70, bits=8),
    Shape(dim=64, heads=8, kv_heads=1, head_dim=64, block=128, activation_block=128, max_length=70, window=9),
    Shape(dim=256, intermediate=256, vocab=64, heads=7, kv_heads=7, head_dim=16, max_length=70, biases=False),
)
PRODUCTS = ((32, 32, 70, 100), (64, 256, 16, 256), (128, 256, 1, 1), (32, 64, 65, 31))  # blocks, outputs, inputs


def normal(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))


def products(operations: Any, edge: Edge) -> None:
    """Of every number of rows that takes another tile."""
    for linear in matrices():
        for rows in (1, 2, 3, 5, 7, 16, 33):
            x, expected = normal(rows, linear.columns), np.empty((rows, linear.rows), np.float32)
            operations.product(native_matrix(linear), x, expected)
            found = guarded(np.zeros_like(expected), edge, writable=True)
            operations.product(native_matrix(guarded_parts(linear, edge)), guarded(x, edge), found)
            same(found, expected)


def matrices() -> Iterator[Linear]:
    """Of each format of integers, with and without inputs and outputs that are filled up."""
    for block, activations, out, columns in PRODUCTS:
        for bits in (4, 8):
            yield random_linear(np.random.default_rng(0), out, columns, bits, block, activations, bias=True)
        yield random_super(np.random.default_rng(0), out, columns, bias=True)


def rows(operations: Any, edge: Edge) -> None:
    """What works on a row in place."""
    for size in (16, 48, 128, 1024):
        x, other = normal(size), np.abs(normal(size, seed=1))
        calls = (
            (operations.exp, ()),
            (operations.silu_mul, (other,)),
            (operations.rms_norm, (other, 1e-6)),
            (operations.rotate, (other[: size // 2], other[size // 2 :], 0.5)),
        )
        for call, arguments in calls:
            expected, found = x.copy(), guarded(x, edge, writable=True)
            call(expected, *arguments)
            call(found, *(guarded(one, edge) if isinstance(one, np.ndarray) else one for one in arguments))
            same(found, expected)
        halves = np.zeros(size, np.uint16)
        found = guarded(halves, edge, writable=True)
        operations.to_half(x, halves)
        operations.to_half(guarded(x, edge, writable=True), found)
        same(found, halves)


def models(instruction_set: str, edge: Edge) -> None:
    """Prompts, steps, forks, and rounds of several sequences."""
    for shape in SHAPES:
        model, embeds = random_model(shape), normal(shape.max_length, shape.dim)
        plain = NativeModel(model, instruction_set, 1).logits(embeds)
        for threads in (1, 3):
            tested = GuardedModel(model, instruction_set, threads, edge)
            for cuts in ([], [1], [64], range(1, shape.max_length), [3, 19, 63, 66]):
                same(tested.logits(embeds, *cuts), plain)
            first, second = tested.native.open(), tested.native.open()
            tested.forward((first, embeds[:40], 0))
            tested.native.fork(first, second, 30)
            left, right = tested.forward((first, embeds[40:], 1), (second, embeds[30:65], 35))
            same(left, plain[-1:])
            same(right, plain[30:65])


def beyond(edge: Edge) -> None:
    """One byte further: what a guard is for."""
    array = guarded(np.zeros(PAGE // 2 - 1, np.uint8), edge)
    ctypes.string_at(array.ctypes.data + (-1 if edge == "front" else array.nbytes), 1)


def main() -> None:
    """Run one edge of one instruction set, or the crash that shows that guards work."""
    extension, instruction_set, edge = sys.argv[1:]
    (chosen,) = (one for one in EDGES if one == edge)
    use(Path(extension))
    if instruction_set == "beyond":
        beyond(chosen)
        return
    operations = load_native().Operations.of(instruction_set)
    products(operations, chosen)
    rows(operations, chosen)
    models(instruction_set, chosen)
    guarded_encoders.rows(instruction_set, chosen)
    guarded_encoders.products(instruction_set, chosen)
    guarded_encoders.encoders(instruction_set, chosen)


if __name__ == "__main__":
    main()
