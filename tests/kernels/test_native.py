"""The native kernels against their specification, and against themselves in other company: equal to the bit."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salmonrun.kernels import reference
from salmonrun.kernels.formats import BLOCK_SIZES, F32, NF4, pack_nf4_t16
from tests.helpers.native_llms import (
    NativeModel,
    Shape,
    native_matrix,
    random_linear,
    random_model,
    random_nf4,
    random_super,
)

native: Any = pytest.importorskip("salmonrun.kernels.cpu._native")


def same_bits(found: F32, expected: F32) -> None:
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> F32:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


# Single operations


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 33])
@pytest.mark.parametrize("bits", [4, 8])
def test_products(instruction_set: str, bits: int, rows: int) -> None:
    for block, activations, out, columns in (
        (32, 32, 70, 100),
        (32, 256, 16, 600),
        (64, 128, 37, 300),
        (128, 256, 1, 1),
    ):
        linear = random_linear(np.random.default_rng(rows), out, columns, bits, block, activations, bias=True)
        x = normal(rows, columns, seed=rows) * 10.0 ** np.arange(rows, dtype=np.float32)[:, None] ** 0.5
        found = np.empty((rows, out), np.float32)
        native.Operations.of(instruction_set).product(native_matrix(linear), x, found)
        same_bits(found, linear(x))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 33])
def test_products_of_super_blocks(instruction_set: str, rows: int) -> None:
    """Nibbles multiplied as integers, and as the bytes that many rows or a matrix unit take, are the same."""
    for out, columns in ((70, 100), (16, 600), (37, 300), (1, 1), (130, 128)):
        linear = random_super(np.random.default_rng(rows), out, columns, bias=True)
        x = normal(rows, columns, seed=rows) * 10.0 ** np.arange(rows, dtype=np.float32)[:, None] ** 0.5
        found = np.empty((rows, out), np.float32)
        native.Operations.of(instruction_set).product(native_matrix(linear), x, found)
        same_bits(found, linear(x))


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_every_multiple_of_every_value(instruction_set: str, rows: int) -> None:
    """Each nibble in each place of a line times each multiple: signed bytes from end to end."""
    linear = random_super(np.random.default_rng(0), 32, 4096, bias=False)
    assert linear.multiples is not None
    linear.packed[:] = np.arange(linear.packed.size).reshape(linear.packed.shape) % 256
    linear.multiples[:] = np.arange(linear.multiples.size).reshape(linear.multiples.shape) % 32 - 15
    linear.scales[:] = 1
    x = np.where(np.arange(rows * 4096).reshape(rows, 4096) % 512 < 256, 1, -1).astype(np.float32)
    found = np.empty((rows, 32), np.float32)
    native.Operations.of(instruction_set).product(native_matrix(linear), x, found)
    same_bits(found, linear(x))


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 16, 33])
def test_products_of_nf4(instruction_set: str, rows: int) -> None:
    for block, out, columns in ((64, 70, 100), (64, 37, 300), (32, 16, 40), (128, 1, 1)):
        matrix = random_nf4(np.random.default_rng(rows), out, columns, block, bias=True)
        x = normal(rows, columns, seed=rows) * 10.0 ** np.arange(rows, dtype=np.float32)[:, None] ** 0.5
        found = np.empty((rows, out), np.float32)
        native.Operations.of(instruction_set).product(native_matrix(matrix), x, found)
        same_bits(found, matrix(x))


def test_every_value_of_nf4_is_looked_up(instruction_set: str) -> None:
    """Each index in each place of a line, whatever its neighbours are."""
    indices = np.random.default_rng(0).integers(0, 16, (16, 64)).astype(np.uint8)
    packed, scales = pack_nf4_t16(indices, np.ones((16, 1), np.float32))
    found = np.empty((64, 16), np.float32)
    matrix = native.Matrix.nf4(packed, scales, 16, 64, 64)
    native.Operations.of(instruction_set).product(matrix, np.eye(64, dtype=np.float32), found)
    same_bits(found.T.copy(), NF4[indices])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_products_of_the_largest_integers(instruction_set: str, bits: int, block: int) -> None:
    """No sum overflows or saturates: weights at either end of their range, activations at theirs."""
    linear = random_linear(np.random.default_rng(0), 32, 512, bits, block, 256, bias=False)
    for byte in (0, 255):
        linear.packed[:] = byte
        x = np.where(np.arange(3 * 512).reshape(3, 512) % 512 < 256, 1, -1).astype(np.float32)
        found = np.empty((3, 32), np.float32)
        native.Operations.of(instruction_set).product(native_matrix(linear), x, found)
        same_bits(found, linear(x))


def test_rows_that_are_zero_or_huge(instruction_set: str) -> None:
    linear = random_linear(np.random.default_rng(0), 20, 64, 4, 32, 32, bias=False)
    x = np.zeros((4, 64), np.float32)
    x[1] = 1e-38
    x[2, 3] = 3e38
    x[3, 40] = np.float32(1e-45)  # subnormal
    found = np.empty((4, 20), np.float32)
    native.Operations.of(instruction_set).product(native_matrix(linear), x, found)
    with np.errstate(over="ignore"):
        same_bits(found, linear(x))


def test_exp(instruction_set: str) -> None:
    edges = np.array([0, -0.0, -87, -87.00001, 88, 89, -1e30, 1e30, -np.inf, np.inf, 1e-40, -1e-40], np.float32)
    x = np.concatenate([np.random.default_rng(0).uniform(-90, 90, 100_000).astype(np.float32), edges, edges[:4]])
    found = x.copy()
    native.Operations.of(instruction_set).exp(found)
    same_bits(found, reference.exp(x))


@pytest.mark.parametrize("size", [16, 48, 2048])
def test_rms_norm(instruction_set: str, size: int) -> None:
    x, weight = normal(size, scale=3), normal(size, seed=1)
    found = x.copy()
    native.Operations.of(instruction_set).rms_norm(found, weight, 1e-6)
    same_bits(found, reference.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("head_dim", [16, 48, 64, 128])
def test_rotary_positions(instruction_set: str, head_dim: int) -> None:
    x, angles = normal(head_dim), normal(head_dim // 2, seed=1)
    found = x.copy()
    native.Operations.of(instruction_set).rotate(found, np.cos(angles), np.sin(angles), 0.125)
    same_bits(found, reference.rotate(x, np.cos(angles), np.sin(angles)) * np.float32(0.125))


def test_swiglu(instruction_set: str) -> None:
    gate, up = normal(4096, scale=30), normal(4096, seed=1)
    found = gate.copy()
    native.Operations.of(instruction_set).silu_mul(found, up)
    same_bits(found, reference.silu_mul(gate, up))


@pytest.mark.parametrize("count", [1, 3, 4, 7, 40])
def test_products_with_rows_of_floats(instruction_set: str, count: int) -> None:
    x, rows = normal(208), normal(count, 208, seed=1)
    found = np.empty(count, np.float32)
    native.Operations.of(instruction_set).dot(x, rows, found)
    same_bits(found, reference.dot(x, rows))


@pytest.mark.parametrize("size", [16, 128])
def test_softmax(instruction_set: str, size: int) -> None:
    x = normal(size, scale=5)
    found = x.copy()
    native.Operations.of(instruction_set).softmax(found)
    shares = reference.exp(x - x.max())
    same_bits(found, shares / reference.sum_rows(shares))


def test_scaled_sums(instruction_set: str) -> None:
    out, x = normal(1024), normal(1024, seed=1)
    found = out.copy()
    native.Operations.of(instruction_set).add_scaled(found, x, 0.3)
    same_bits(found, reference.fma(x, np.float32(0.3), out))


def test_half_precision(instruction_set: str) -> None:
    """All halves come back; what lies between two is rounded as numpy does it."""
    halves = np.arange(2**16, dtype=np.uint16)
    finite = halves[np.isfinite(halves.view(np.float16))]
    exact = finite.view(np.float16).astype(np.float32)
    near = np.concatenate([np.nextafter(exact, np.float32(side)) for side in (-np.inf, np.inf)])
    middle = (exact[1:] + exact[:-1]) / 2
    x = np.concatenate([exact, near, middle, normal(1 << 16), np.array([np.inf, -np.inf, 65520, 1e30], np.float32)])
    x = x[: len(x) // 16 * 16]
    found = np.empty(len(x), np.uint16)
    native.Operations.of(instruction_set).to_half(x, found)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, x.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("size", [16, 48, 128])
def test_keys_and_values_as_bytes(instruction_set: str, size: int) -> None:
    to_bytes = native.Operations.of(instruction_set).to_bytes
    extremes = [np.zeros(size, np.float32), np.full(size, 1e-31, np.float32), normal(size, scale=1e30)]
    for x in (*(normal(size, seed=seed) for seed in range(50)), *extremes):
        found = np.empty(size, np.int8)
        scale = np.float32(to_bytes(x.copy(), found))
        values, scales = reference.quantize_activations(x[None], size)
        np.testing.assert_array_equal(found, values[0])
        assert scale == scales[0, 0]


# The whole forward pass

SHAPES = {
    "odd sizes": Shape(),
    "window": Shape(window=9, biases=False, head_norms=False),
    "all heads, 8 bits": Shape(heads=4, kv_heads=4, head_dim=16, bits=8, head_bits=4, block=64),
    "experts": Shape(experts=5),
    "super-blocks, experts": Shape(super_blocks=True, experts=4, shared_expert=True),
    "nf4, experts": Shape(nf4=True, block=64, experts=4, shared_expert=True),
    "experts and a shared one, 8 bits": Shape(experts=19, shared_expert=True, bits=8, biases=False, layers=4),
    "a cache of bytes": Shape(cache_bits=8, heads=7, kv_heads=1),
    "one kv head, blocks of 128": Shape(dim=64, heads=8, kv_heads=1, head_dim=64, block=128, activation_block=128),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A model, embeddings of one sequence, and the logits after each."""

    model: reference.Model
    embeds: F32
    logits: F32


@pytest.fixture(scope="module", params=list(SHAPES))
def case(request: pytest.FixtureRequest) -> Case:
    model = random_model(SHAPES[request.param])
    embeds = normal(140, SHAPES[request.param].dim)  # more than a slice, and than two pages
    return Case(model, embeds, model.logits(embeds))


def test_the_forward_pass_is_the_reference(instruction_set: str, case: Case) -> None:
    same_bits(NativeModel(case.model, instruction_set, 1).logits(case.embeds), case.logits)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_prompt_may_be_cut_anywhere(instruction_set: str, threads: int, case: Case) -> None:
    model = NativeModel(case.model, instruction_set, threads)
    for cuts in ([1], [64], [16, 17], [127, 128, 129], [63, 65], range(3, 140, 7), range(100, 140)):
        same_bits(model.logits(case.embeds, *cuts), case.logits)


BATCHES = (1, 2, 3, 4, 7, 8, 16, 33)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), batch=st.sampled_from(BATCHES), threads=st.sampled_from([1, 2, 3]))
def test_a_tokens_logits_do_not_depend_on_its_company(data: st.DataObject, batch: int, threads: int) -> None:
    """One sequence with known logits among others of other content and length, appended in pieces, in any order."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    name = data.draw(st.sampled_from(native.instruction_sets()))
    model, case = company(name, threads)
    mine, others = model.native.open(), [model.native.open() for _ in range(batch - 1)]
    found, start = [], 0
    while start < len(case.embeds):
        count = min(int(rng.choice([1, 2, 5, 8, 33])), len(case.embeds) - start)
        chunks = [(mine, case.embeds[start : start + count], count)]
        for other in others:
            if model.native.length(other) > 150:
                model.native.truncate(other, int(rng.integers(0, 100)))
            embeds = rng.normal(0, 10.0 ** rng.uniform(-2, 2), (int(rng.choice([1, 1, 3])), case.embeds.shape[1]))
            chunks.append((other, embeds.astype(np.float32), int(rng.integers(0, 2))))
        order = rng.permutation(len(chunks))
        logits = model.forward(*(chunks[i] for i in order))
        found.append(logits[order.tolist().index(0)])
        start += count
    for sequence in (mine, *others):
        model.native.close(sequence)
    same_bits(np.concatenate(found), case.logits)


@cache
def company(name: str, threads: int) -> tuple[NativeModel, Case]:
    shape = Shape(window=40, super_blocks=True)
    model = random_model(shape)
    embeds = normal(70, shape.dim)
    return NativeModel(model, name, threads), Case(model, embeds, model.logits(embeds))


# Sequences that share pages


def test_forks_share_and_part(instruction_set: str) -> None:
    model, case = company(instruction_set, 2)
    first, second, third = (model.native.open() for _ in range(3))
    model.forward((first, case.embeds[:40], 0))
    model.native.fork(first, second, 40)
    before = model.native.cache_bytes
    other = normal(5, case.embeds.shape[1], seed=9)
    model.forward((first, other, 0), (second, case.embeds[40:50], 0))  # each writes into the page they shared
    model.native.fork(second, third, 45)
    model.native.close(second)
    (logits,) = model.forward((third, case.embeds[45:], 25))
    same_bits(logits, case.logits[45:])
    model.native.truncate(first, 40)
    (logits,) = model.forward((first, case.embeds[40:], 30))
    same_bits(logits, case.logits[40:])
    assert model.native.cache_bytes == before
    for sequence in (first, third):
        model.native.close(sequence)
    assert model.native.cache_bytes == 0, "memory goes back when nobody has a sequence"


def test_what_cannot_be_run_is_refused_and_changes_nothing() -> None:
    model, case = company("portable", 1)
    sequence, embeds = model.native.open(), case.embeds[:10]
    model.forward((sequence, embeds, 0))
    refusals: list[tuple[Any, str]] = [
        ([(sequence, embeds, 11)], "11 logits are wanted of 10 positions"),
        ([(sequence, embeds, -1)], "-1 logits"),
        ([(sequence, np.zeros((191, embeds.shape[1]), np.float32), 0)], "10 .+ 191 positions exceed 200"),
        ([(sequence, embeds, 1), (sequence, embeds, 1)], "once in a round"),
        ([(sequence, embeds[:, 1:].copy(), 1)], "embeddings of another size"),
    ]
    for chunks, message in refusals:
        with pytest.raises(ValueError, match=message):
            model.forward(*chunks)
        assert model.native.length(sequence) == 10
    with pytest.raises(IndexError):
        model.forward((sequence + 1000, embeds, 1))
    with pytest.raises(ValueError, match="cannot truncate 10 positions to 11"):
        model.native.truncate(sequence, 11)
    with pytest.raises(ValueError, match="cannot copy 11 of 10 positions"):
        model.native.fork(sequence, sequence, 11)
    model.native.close(sequence)
    with pytest.raises(IndexError):
        model.native.length(sequence)


def test_weights_that_do_not_fit_are_refused() -> None:
    linear = random_linear(np.random.default_rng(0), 20, 64, 4, 32, 32, bias=True)
    sizes: dict[str, Any] = {"rows": 20, "columns": 64, "bits": 4, "block": 32, "activation_block": 32}
    packed, scales = linear.packed, linear.scales.view(np.uint16)
    native.Matrix(packed, scales, **sizes)
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"rows": 33}, "packed weights: 1024 values, expected 1536"),
        ({"columns": 65}, "packed weights: 1024 values, expected 1536"),
        ({"bits": 8}, "packed weights: 1024 values, expected 2048"),
        ({"bits": 5}, "5 bits; expected 4 or 8"),
        ({"block": 16}, "blocks of 16; expected 32, 64 or 128"),
        ({"block": 64}, "activations in blocks of 32; expected 32, 64, 128 or 256, a multiple of 64"),
        ({"rows": 0}, "a matrix of 0 x 64"),
        ({"rows": 2**31 - 1}, "a matrix of 2147483647 x 64"),
    ]
    for change, message in refusals:
        with pytest.raises(ValueError, match=message):
            native.Matrix(packed, scales, **(sizes | change))
    with pytest.raises(ValueError, match="scales: 32 values, expected 64"):
        native.Matrix(packed, scales[:1], **sizes)
    with pytest.raises(ValueError, match="bias of 19 values, expected 20"):
        native.Matrix(packed, scales, **sizes, bias=np.zeros(19, np.float32))
    floats = np.zeros((2, 1, 16), np.float32)
    native.Matrix.nf4(packed, floats, 20, 64, 64)
    with pytest.raises(ValueError, match="packed weights: 1024 values, expected 2048"):
        native.Matrix.nf4(packed, floats, 20, 65, 64)
    with pytest.raises(ValueError, match="scales: 32 values, expected 64"):
        native.Matrix.nf4(packed, floats, 20, 64, 32)
    with pytest.raises(ValueError, match="blocks of 16; expected 32, 64 or 128"):
        native.Matrix.nf4(packed, floats, 20, 64, 16)
    with pytest.raises(TypeError):
        native.Matrix.nf4(packed, scales, 20, 64, 64)
    with pytest.raises(TypeError):
        native.Matrix(packed.astype(np.int8), scales, **sizes)
    with pytest.raises(TypeError):
        native.Matrix(packed[:, ::2], scales, **sizes)


def test_models_whose_parts_do_not_fit_are_refused() -> None:
    model = random_model(Shape(layers=1, block=64))
    (layer,) = model.layers
    assert layer.q_norm is not None
    mlp = layer.mlp
    assert isinstance(mlp, reference.Mlp)
    turned = reference.Mlp(gate=mlp.down, up=mlp.gate, down=mlp.down)
    refusals: list[tuple[reference.Model, str]] = [
        (replace(model, heads=5), "5 heads cannot share 2 KV heads evenly"),
        (replace(model, heads=2**28 + 6), "q_proj is 288 x 80, expected 12884902176 x 80"),  # 288 in 32 bits
        (replace(model, heads=4), "q_proj is 288 x 80, expected 192 x 80"),
        (replace(model, head_dim=24), "head_dim is 24; expected a multiple of 16"),
        (replace(model, sin=model.sin[:-1]), "rope.cos: 4800 values, expected 4776"),
        (replace(model, layers=[]), "no layers"),
        (replace(model, layers=[replace(layer, mlp=turned)]), "gate_proj is 80 x 101"),
        (replace(model, layers=[replace(layer, q_norm=layer.input_norm)]), "norm of a head: 80 values, expected 48"),
        (replace(model, norm=model.norm[:-1]), "norm: 79 values, expected 80"),
        (replace(model, layers=[replace(layer, input_norm=layer.q_norm)]), "input_layernorm: 48 values, expected 80"),
    ]
    for changed, message in refusals:
        with pytest.raises(ValueError, match=message):
            NativeModel(changed, "portable", 1)
    mixture = random_model(Shape(experts=3, shared_expert=True)).layers[1].mlp
    assert isinstance(mixture, reference.Mixture)
    assert mixture.shared_gate is not None
    changes: list[tuple[dict[str, Any], str]] = [
        ({"experts": []}, "a mixture of no experts"),
        ({"experts": mixture.experts[1:]}, "router: 240 values, expected 2 x 80"),
        ({"per_token": 4}, "4 experts a position of 3"),
        ({"per_token": 0}, "0 experts a position of 3"),
        ({"shared": None}, "shared_expert_gate: 128 values, expected 0"),
        ({"shared_gate": None}, "shared_expert_gate: 0 values, expected 128"),
        ({"shared_gate": mixture.shared_gate[:, 1:].copy()}, "shared_expert_gate: 79 values, expected 80"),
        ({"shared": mlp}, "the experts are quantized in different ways"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            NativeModel(replace(model, layers=[replace(layer, mlp=replace(mixture, **change))]), "portable", 1)
    with pytest.raises(ValueError, match=r"instruction set 'mmx'; this processor has .*portable"):
        NativeModel(model, "mmx", 1)
    with pytest.raises(ValueError, match="0 threads; expected at least 1"):
        NativeModel(model, "portable", 0)


def test_the_callers_arithmetic_does_not_matter_and_is_left_alone(instruction_set: str) -> None:
    """A library in the process may have told the processor to flush subnormal numbers."""
    torch = pytest.importorskip("torch")
    model, case = company(instruction_set, 1)
    tiny = case.embeds * np.float32(1e-38)
    expected = case.model.logits(tiny)
    assert torch.set_flush_denormal(True)
    try:
        found = model.logits(tiny)
        assert (np.array([1e-40], np.float32) * np.float32(1) == 0).all(), "still flushed"
    finally:
        torch.set_flush_denormal(False)
    same_bits(found, expected)
