"""Shapes at the edges of what the kernels take: equal to the specification to the bit, or refused in words."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from salmonrun.kernels.formats import BLOCK_SIZES, F32
from tests.helpers.native_llms import NativeModel, Shape, native_matrix, random_linear, random_model, random_super

native: Any = pytest.importorskip("salmonrun.kernels.cpu._native")


def same_bits(found: F32, expected: F32) -> None:
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def normal(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


# Matrices


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_inputs_that_are_not_whole_blocks(instruction_set: str, bits: int, block: int) -> None:
    """They are filled up with zeros, in the weights and in what these are multiplied with."""
    for columns in (1, 15, 17, 31, 33, block - 1, block, block + 1, 2 * block + 1, 129):
        linear = random_linear(np.random.default_rng(columns), 18, columns, bits, block, 2 * block, bias=True)
        for rows in (1, 7):
            x, found = normal(rows, columns, seed=columns), np.empty((rows, 18), np.float32)
            native.Operations.of(instruction_set).product(native_matrix(linear), x, found)
            same_bits(found, linear(x))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("outputs", [1, 2, 15, 16, 17, 63, 65])
def test_outputs_that_are_not_whole_groups(instruction_set: str, bits: int, outputs: int) -> None:
    linear = random_linear(np.random.default_rng(outputs), outputs, 40, bits, 32, 32, bias=True)
    for rows in (1, 6, 17):
        x, found = normal(rows, 40, seed=outputs), np.empty((rows, outputs), np.float32)
        native.Operations.of(instruction_set).product(native_matrix(linear), x, found)
        same_bits(found, linear(x))


def test_inputs_of_other_whole_blocks_are_refused() -> None:
    """70 inputs lie in 3 blocks of 32 or 2 of 64: what was written for one cannot be read as the other."""
    linear = random_linear(np.random.default_rng(0), 16, 70, 4, 32, 64, bias=False)
    packed, scales = linear.packed, linear.scales.view(np.uint16)
    for columns, block, message in (
        (64, 32, "packed weights: 768 values, expected 512"),
        (97, 32, "packed weights: 768 values, expected 1024"),
        (70, 64, "packed weights: 768 values, expected 1024"),
    ):
        with pytest.raises(ValueError, match=message):
            native.Matrix(packed, scales, 16, columns, 4, block, 64)
    with pytest.raises(ValueError, match="scales: 32 values, expected 48"):
        native.Matrix(packed, scales[:, :2].copy(), 16, 70, 4, 32, 64)


def test_a_super_block_is_whole_or_refused() -> None:
    linear = random_super(np.random.default_rng(0), 16, 70, bias=False)
    assert linear.multiples is not None
    parts = (linear.packed, linear.multiples, linear.scales.view(np.uint16))
    with pytest.raises(ValueError, match="multiples: 48 values, expected 64"):
        native.Matrix.super_blocks(*parts, 16, 97)
    with pytest.raises(ValueError, match="multiples: 48 values, expected 96"):
        native.Matrix.super_blocks(*parts, 17, 70)
    with pytest.raises(ValueError, match="packed weights: 512 values, expected 768"):
        native.Matrix.super_blocks(parts[0][:, :2].copy(), *parts[1:], 16, 70)
    with pytest.raises(ValueError, match="scales: 8 values, expected 16"):
        native.Matrix.super_blocks(*parts[:2], parts[2][:, :, :8].copy(), 16, 70)


# Models

SHAPES = {
    "super-blocks of one input": Shape(
        dim=1, intermediate=1, vocab=1, layers=1, heads=1, kv_heads=1, head_dim=16, super_blocks=True
    ),
    "one more than a super-block": Shape(dim=129, intermediate=257, layers=1, super_blocks=True),
    "one of everything": Shape(
        dim=1, intermediate=1, vocab=1, layers=1, heads=1, kv_heads=1, head_dim=16, bits=8, head_bits=4
    ),
    "one more than a block": Shape(dim=33, intermediate=129, vocab=17, head_dim=16, heads=2, kv_heads=1),
    "one less than a block": Shape(dim=127, intermediate=31, vocab=15, block=128, activation_block=256, bits=8),
    "seven heads": Shape(heads=7, kv_heads=7, head_dim=16, biases=False),
    "seven heads of one": Shape(heads=7, kv_heads=1, head_dim=32, head_norms=False),
    "five heads of each of three": Shape(heads=15, kv_heads=3, head_dim=16, layers=1, window=1),
    "a cache of bytes": Shape(heads=7, kv_heads=7, head_dim=16, cache_bits=8),
    "a window of one position": Shape(window=1),
}
POSITIONS = 67  # more than a page


@cache
def specified(name: str) -> tuple[Any, F32, F32]:
    """A model, embeddings of a sequence, and the logits after each."""
    model, embeds = random_model(SHAPES[name]), normal(POSITIONS, SHAPES[name].dim)
    return model, embeds, model.logits(embeds)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_models_of_odd_shapes(instruction_set: str, name: str, threads: int) -> None:
    model, embeds, expected = specified(name)
    tested = NativeModel(model, instruction_set, threads)
    for cuts in ([], [1], range(1, POSITIONS), [15, 16, 64]):
        same_bits(tested.logits(embeds, *cuts), expected)
    same_bits(tested.logits(embeds[:1]), expected[:1])  # a prompt of one position


@pytest.mark.parametrize("max_length", [1, 15, 64, 65])
def test_a_sequence_may_be_as_long_as_the_model_and_no_longer(instruction_set: str, max_length: int) -> None:
    shape = Shape(layers=1, max_length=max_length)
    model, embeds = random_model(shape), normal(max_length + 1, shape.dim)
    expected = model.logits(embeds[:max_length])
    tested = NativeModel(model, instruction_set, 2)
    with pytest.raises(ValueError, match=rf"0 \+ {max_length + 1} positions exceed {max_length}"):
        tested.logits(embeds)
    sequence = tested.native.open()
    same_bits(tested.forward((sequence, embeds[:max_length], max_length))[0], expected)
    with pytest.raises(ValueError, match=rf"{max_length} \+ 1 positions exceed {max_length}"):
        tested.forward((sequence, embeds[-1:], 1))
    tested.native.truncate(sequence, max_length - 1)  # what was refused has left everything as it was
    same_bits(tested.forward((sequence, embeds[max_length - 1 : max_length], 1))[0], expected[-1:])


@pytest.mark.parametrize("threads", [1, 2])
def test_an_empty_round(instruction_set: str, threads: int) -> None:
    model, embeds, expected = specified("seven heads")
    tested = NativeModel(model, instruction_set, threads)
    sequence = tested.native.open()
    tested.forward((sequence, embeds[:5], 0))
    nothing, dim = np.empty((0, 3), np.int32), embeds.shape[1]
    tested.native.forward(nothing, np.empty((0, dim), np.float32), np.empty((0, tested.vocab), np.float32))
    with pytest.raises(ValueError, match="embeddings of another size than the chunks say"):
        tested.native.forward(nothing, embeds[:1], np.empty((0, tested.vocab), np.float32))
    with pytest.raises(ValueError, match="logits of another size than the chunks say"):
        tested.native.forward(nothing, embeds[:0], np.empty((1, tested.vocab), np.float32))
    with pytest.raises(ValueError, match="0 logits are wanted of 0 positions; at least one is needed"):
        tested.native.forward(np.array([[sequence, 0, 0]], np.int32), embeds[:0], np.empty((0, 1), np.float32))
    same_bits(tested.forward((sequence, embeds[5:], 1))[0], expected[-1:])
