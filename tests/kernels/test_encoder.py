"""The native encoder against its specification: equal to the bit, whole or in blocks; what does not fit is refused."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from salmonrun.kernels import encoder_reference as reference
from salmonrun.kernels.formats import F32
from tests.helpers.native_encoders import (
    Encoded,
    NativeEncoder,
    Shape,
    in_blocks,
    native_layer,
    random_encoder,
    random_positions,
    same_bits,
)
from tests.helpers.native_llms import random_nf4

native: Any = pytest.importorskip("salmonrun.kernels.cpu._native")

POST = Shape(norm_first=False, norm=False, key_bias=True)
SHAPES = {
    "pre-norm": Shape(),
    "pre-norm, floats": Shape(floats=True),
    "pre-norm, bfloat16": Shape(bfloat16=True),
    "gates, bfloat16": replace(POST, gated=True, bfloat16=True),
    "low rank, bfloat16": Shape(rank=17, head_dim=15, bfloat16=True),
    "post-norm": POST,
    "post-norm, floats": replace(POST, floats=True),
    "gates": replace(POST, gated=True),
    "gates, floats": replace(POST, gated=True, floats=True),
    "gates before norms": Shape(gated=True),
    "low rank": Shape(rank=17, ffn=256),
    "low rank, floats": Shape(rank=17, floats=True),
    "4 bits": Shape(bits=4, rank=40, block=64),
    "some floats": Shape(exact=("0.qkv", "1.out", "1.fc2")),
    "some floats, gates": replace(POST, gated=True, exact=("0.out", "0.fc1", "1.qkv")),
    "some floats, low rank": Shape(rank=17, ffn=256, exact=("0.fc1", "1.out")),
    "blocks of 128": Shape(heads=2, head_dim=64, ffn=512, block=128, activation_block=128),
}
POSITIONS = 100  # more than two tiles of queries, no whole panel
CUTS = ((1,), (47, 48, 96), (5, 21, 90, 99))


@dataclass(frozen=True, eq=False)
class Case:
    """An encoder, positions of a recording, and their states whole and in blocks."""

    encoder: reference.Encoder
    x: F32
    whole: Encoded
    blocks: dict[tuple[int, ...], Encoded]


@pytest.fixture(scope="module", params=list(SHAPES))
def case(request: pytest.FixtureRequest) -> Case:
    shape = SHAPES[request.param]
    encoder, x = random_encoder(shape), random_positions(POSITIONS, shape.dim)
    return Case(encoder, x, encoder(x), {cuts: in_blocks(encoder, x, *cuts) for cuts in CUTS})


@pytest.mark.parametrize("threads", [1, 3])
def test_states_and_what_is_kept_are_the_references(instruction_set: str, threads: int, case: Case) -> None:
    encoder = NativeEncoder(case.encoder, instruction_set, threads)
    same_bits(encoder(case.x), case.whole)
    same_bits(encoder.forward(case.x, [POSITIONS], [encoder.room(0)], []), case.whole[0])  # nothing is kept
    for cuts, expected in case.blocks.items():
        same_bits(in_blocks(encoder, case.x, *cuts), expected)


def test_attention_that_is_almost_sure(instruction_set: str) -> None:
    """Scores far apart: most weights are nothing, and one is almost all."""
    for shape in (POST, replace(POST, floats=True), replace(POST, gated=True)):
        encoder, x = random_encoder(replace(shape, layers=1)), 30 * random_positions(70, shape.dim)
        same_bits(NativeEncoder(encoder, instruction_set, 2)(x), encoder(x))


def test_positions_that_are_alike_or_nothing(instruction_set: str) -> None:
    """Layer norms of nothing, keys and values that are zero, scales without which nothing can be divided."""
    for floats in (False, True):
        for shape in (Shape(floats=floats), replace(POST, floats=floats)):
            encoder = random_encoder(shape)
            for x in (np.zeros((20, shape.dim), np.float32), np.full((20, shape.dim), 1e-40, np.float32)):
                same_bits(NativeEncoder(encoder, instruction_set, 2)(x), encoder(x))
    silent = random_encoder(POST)
    for layer in silent.layers:
        for matrix in (layer.k, layer.v):
            matrix.scales[:] = 0  # type: ignore[attr-defined]
            matrix.bias[:] = 0  # type: ignore[attr-defined]
    x = random_positions(20, POST.dim)
    same_bits(NativeEncoder(silent, instruction_set, 2)(x), silent(x))


def test_a_past_of_any_bytes(instruction_set: str) -> None:
    """Bytes from -128 on, which no encoder writes, and scales of any size, but finite ones."""
    encoder = random_encoder(Shape(layers=1))
    rng = np.random.default_rng(0)
    past = rng.integers(0, 256, (1, 77, 168), np.uint8)
    past[:, :, 144:].view(np.float32)[:] = np.exp(rng.uniform(-20, 3, (1, 77, 6)))
    x = random_positions(50, 72)
    same_bits(NativeEncoder(encoder, instruction_set, 2)(x, past), encoder(x, past))


def test_a_past_that_is_cut_in_front(instruction_set: str) -> None:
    """As a stream has it that looks back for a while: no contiguous array."""
    for floats in (False, True):
        encoder, x = random_encoder(Shape(floats=floats)), random_positions(40, 72)
        _, kept = encoder(x)
        assert not kept[:, 25:].flags.c_contiguous
        same_bits(NativeEncoder(encoder, instruction_set, 1)(x, kept[:, 25:]), encoder(x, kept[:, 25:]))


def test_scales_of_keys_beyond_halves(instruction_set: str) -> None:
    """They are rounded to float16: to infinity where there is none as large, and then to what is no number."""
    encoder = random_encoder(Shape(layers=1))
    _, kept = encoder(random_positions(5, 72))
    for scale, finite in ((65504.0, True), (1e-6, True), (1e-9, True), (66000.0, False)):
        kept[:, :, 144:156].view(np.float32)[:] = scale
        states, _ = NativeEncoder(encoder, instruction_set, 1)(random_positions(3, 72), kept)
        if finite:
            same_bits(states, encoder(random_positions(3, 72), kept)[0])


# What is refused


def test_what_cannot_be_encoded_is_refused_and_changes_nothing() -> None:
    shape = Shape(gated=True, longest=30, layers=2)
    tested = NativeEncoder(random_encoder(shape), "portable", 2)
    x, room = random_positions(10, shape.dim), tested.room
    no_layer, other_bytes = room(10)[:1], np.zeros((2, 10, 169), np.uint8)
    refusals: list[tuple[Any, list[int], list[Any], list[Any], str]] = [
        (x, [], [], [], "x: 720 values, expected 0"),
        (x, [9], [room(0)], [], "x: 720 values, expected 648"),
        (x, [11], [room(0)], [], "x: 720 values, expected 792"),
        (x, [5, 5], [room(0)], [], "past: 1 values, expected 2"),
        (x, [10], [], [], "past: 0 values, expected 1"),
        (x, [5, 5], [room(0), room(0)], [room(5)], "present: 1 values, expected 2"),
        (x, [10, 0], [room(0), room(0)], [], "0 positions of a recording; expected at least 1"),
        (x, [11, -1], [room(0), room(0)], [], "-1 positions of a recording; expected at least 1"),
        (x, [2**31 - 1], [room(0)], [], "2147483647 positions of a recording; the encoder has room for 30"),
        (x, [10], [room(21)], [], "31 positions of a recording; the encoder has room for 30"),
        (x, [10], [room(0)], [room(9)], "present: 3024 values, expected 3360"),
        (x, [10], [room(1)], [room(10)], "present: 3360 values, expected 3696"),
        (x, [10], [no_layer], [], r"past and present: expected \[2, positions, 168\]"),
        (x, [10], [room(0)], [other_bytes], r"past and present: expected \[2, positions, 168\]"),
        (x[:, 1:].copy(), [10], [room(0)], [], "x: 710 values, expected 720"),
    ]
    for rows, counts, past, present, message in refusals:
        before, kept = rows.copy(), [one.copy() for one in present]
        with pytest.raises(ValueError, match=message):
            tested.native.forward(rows, np.array(counts, np.int32), past, present)
        same_bits(rows, before)
        for one, same in zip(present, kept, strict=True):
            same_bits(one, same)
    nothing = x[:0].copy()
    tested.native.forward(nothing, np.empty(0, np.int32), [], [])  # no recording at all


def test_what_is_kept_is_never_written_into_a_copy() -> None:
    """An array of another dtype or layout would be converted, and the caller's stay as it was."""
    tested = NativeEncoder(random_encoder(Shape()), "portable", 1)
    x, counts, past = random_positions(10, 72), np.array([10], np.int32), [tested.room(0)]
    read_only = tested.room(10)
    read_only.flags.writeable = False
    apart = np.zeros((2, 20, 168), np.uint8)[:, ::2]
    for present in (apart, tested.room(10).astype(np.int8), np.zeros((2, 10, 168), np.float32), read_only):
        with pytest.raises(TypeError):
            tested.native.forward(x.copy(), counts, past, [present])
    for other_counts in (counts.astype(np.int64), counts.astype(np.float32)):
        with pytest.raises(TypeError):
            tested.native.forward(x.copy(), other_counts, past, [])
    for rows in (x.astype(np.float64), x[:, ::-1], np.asfortranarray(x)):
        with pytest.raises(TypeError):
            tested.native.forward(rows, counts, past, [])


def test_recordings_that_are_too_long_for_integer_sums_are_refused() -> None:
    shape = Shape(heads=1, head_dim=1, ffn=1, layers=1)
    tested = NativeEncoder(random_encoder(shape), "portable", 1)
    with pytest.raises(ValueError, match="65536 positions of a recording; the encoder has room for 65535"):
        tested.native.forward(np.zeros(65536, np.float32), np.array([65536], np.int32), [tested.room(0)], [])


def test_encoders_whose_parts_do_not_fit_are_refused() -> None:
    encoder = random_encoder(Shape())
    gated = random_encoder(Shape(gated=True, longest=30))
    wide, floats = random_encoder(Shape(heads=4)), random_encoder(Shape(floats=True))
    (layer, _), (other, _) = encoder.layers, wide.layers
    (gates, _), by_distance = gated.layers, gated.bias_by_distance
    gate = gates.gate
    assert gate
    assert by_distance is not None
    blocks, brain_floats = random_encoder(Shape(block=64)).layers[0], random_encoder(Shape(bfloat16=True))
    thin = random_encoder(Shape(rank=17)).layers[0].out
    assert isinstance(thin, reference.LowRank)
    nf4 = random_nf4(np.random.default_rng(0), 72, 72, 64, bias=True)

    def with_layer(**changes: Any) -> reference.Encoder:
        return replace(encoder, layers=[replace(layer, **changes)])

    def with_gate(**changes: Any) -> reference.Encoder:
        return replace(gated, layers=[replace(gates, gate=replace(gate, **changes))])

    refusals: list[tuple[reference.Encoder, str]] = [
        (replace(encoder, layers=[]), "no layers"),
        (replace(encoder, heads=5), "5 heads cannot share 72 values evenly"),
        (replace(encoder, heads=0), "0 heads cannot share 72 values evenly"),
        (replace(encoder, heads=-3), "-3 heads cannot share 72 values evenly"),
        (with_layer(k=other.k), "k_proj is 96 x 96, expected 72 x 72"),
        (with_layer(fc2=layer.out), "fc2 is 72 x 72, expected 72 x 101"),
        (with_layer(fc1=other.fc1), "fc1 is 101 x 96, expected 101 x 72"),
        (with_layer(v=floats.layers[0].v), "q, k and v are quantized in different ways"),
        (with_layer(v=brain_floats.layers[0].v), "v_proj is stored in another way than the others"),
        (replace(floats, layers=[replace(floats.layers[0], out=brain_floats.layers[0].out)]),
         "q_proj is stored in another way than the others"),
        (with_layer(out=nf4), "out_proj is stored in another way than the others"),
        (with_layer(q=nf4), "q_proj is stored in another way than the others"),
        (with_layer(k=blocks.k), "q, k and v are quantized in different ways"),
        (with_layer(out=replace(thin, up=layer.fc1)), "out_proj is 101 x 72, expected 72 x 17"),
        (with_layer(out=replace(thin, down=layer.fc2)), "out_proj is 72 x 17, expected 72 x 72"),
        (with_layer(out=replace(thin, down=random_encoder(Shape(rank=17, floats=True)).layers[0].out.down)),  # type: ignore[attr-defined]
         "out_proj is stored in another way than the others"),
        (with_layer(mlp_norm=other.mlp_norm), "mlp_norm.weight: 96 values, expected 72"),
        (replace(encoder, norm=wide.norm), "norm.weight: 96 values, expected 72"),
        (with_layer(gate=gate), "gates are there without a bias, or a bias without them"),
        (replace(encoder, bias_by_distance=by_distance), "gates are there without a bias, or a bias without them"),
        (with_gate(weight=gate.weight[:, 1:].copy()), "gate.weight: 46 values, expected 48"),
        (with_gate(weight=gate.weight[:1].copy()), r"gate.weight: expected \[2, head_dim\]"),
        (with_gate(bias=gate.scale), "gate.bias: 3 values, expected 2"),
        (with_gate(scale=gate.bias), "gate.scale: 2 values, expected 3"),
        (replace(gated, bias_by_distance=by_distance[:, 1:].copy()), "bias_by_distance: 174 values, expected"),
        (replace(gated, bias_by_distance=by_distance[:2].copy()), "bias_by_distance: 118 values, expected"),
    ]  # fmt: skip
    for changed, message in refusals:
        with pytest.raises(ValueError, match=message):
            NativeEncoder(changed, "portable", 1)
    with pytest.raises(ValueError, match=r"instruction set 'mmx'; this processor has .*portable"):
        NativeEncoder(encoder, "mmx", 1)
    with pytest.raises(ValueError, match="0 threads; expected at least 1"):
        NativeEncoder(encoder, "portable", 0)


def test_norms_that_do_not_fit_are_refused() -> None:
    ones = np.ones(3, np.float32)
    native.LayerNorm(ones, ones, 1e-5)
    with pytest.raises(ValueError, match="bias: 2 values, expected 3"):
        native.LayerNorm(ones, ones[:2], 1e-5)
    with pytest.raises(ValueError, match="a layer norm of no values"):
        native.LayerNorm(ones[:0], ones[:0], 1e-5)


def test_what_an_encoder_says_of_itself(instruction_set: str) -> None:
    for floats, kept in ((False, 2 * 72 + 8 * 3), (True, 8 * 72)):
        found = NativeEncoder(random_encoder(Shape(floats=floats)), instruction_set, 3).native
        assert (found.dim, found.position_bytes) == (72, kept)
        assert (found.instruction_set, found.threads) == (instruction_set, 3)


def test_an_encoder_keeps_its_weights(instruction_set: str) -> None:
    """Matrices are used where they lie, which may be nowhere else any more."""
    shape = Shape(layers=1)
    tested, x = NativeEncoder(random_encoder(shape), instruction_set, 2), random_positions(20, shape.dim)
    rubbish = [random_encoder(shape, seed) for seed in range(1, 4)]
    assert len([native_layer(layer) for encoder in rubbish for layer in encoder.layers]) == 3
    same_bits(tested(x), random_encoder(shape)(x))


def test_the_callers_arithmetic_does_not_matter_and_is_left_alone(instruction_set: str) -> None:
    """A library in the process may have told the processor to flush subnormal numbers."""
    torch = pytest.importorskip("torch")
    encoder = random_encoder(replace(POST, floats=True))
    tested, tiny = NativeEncoder(encoder, instruction_set, 2), random_positions(20, 72) * np.float32(1e-38)
    expected = encoder(tiny)
    gelu = reference.gelu(tiny)
    assert torch.set_flush_denormal(True)
    try:
        found, activated = tested(tiny), tiny.copy()
        tested.native.gelu(activated)
        assert (np.array([1e-40], np.float32) * np.float32(1) == 0).all(), "still flushed"
    finally:
        torch.set_flush_denormal(False)
    same_bits(found, expected)
    same_bits(activated, gelu)
