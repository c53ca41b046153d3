"""The decoders in float32 against transformers: logits of every way to append, slots that share, fork and roll back."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch

from salmonrun.runtime.decoder import Chunk, likeliest
from salmonrun.runtime.errors import CapacityError, ClosedError
from tests.helpers.llms import BASE, LLAMA3, MAX_LENGTH, Pair, assert_close, tokens_of

Runs = Literal["onnx", "torch"]
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "one layer, one kv head, untied": {
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "tie_word_embeddings": False,
    },
    "three layers, all kv heads": {"num_hidden_layers": 3, "num_key_value_heads": 4, "head_dim": 32},
    "two wide heads, linear rope": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "llama3 rope, untied": {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32},
        "tie_word_embeddings": False,
    },
    "odd sizes": {"hidden_size": 80, "intermediate_size": 101, "vocab_size": 53, "head_dim": 48},
}


RUNS: tuple[Runs, ...] = ("onnx", "torch")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for their threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[(name, runs) for name in VARIANTS for runs in RUNS], ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    name, runs = request.param
    return Pair(BASE | VARIANTS[name], tmp_path_factory.mktemp("llm"), runs)


@pytest.fixture(scope="module", params=RUNS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(BASE, tmp_path_factory.mktemp("llm"), request.param)


# Every way to append, on every variant


def test_prefill(pair: Pair) -> None:
    ids = tokens_of(1, 40)
    with pair.open(1) as (slot,):
        assert_close(pair.prefill(slot, ids), pair.expected(ids)[-1])
        assert pair.decoder.length(slot) == 40


def test_prefill_in_two_parts(pair: Pair) -> None:
    ids = tokens_of(2, 33)
    with pair.open(1) as (slot,):
        assert_close(pair.prefill(slot, ids[:20]), pair.expected(ids)[19])
        assert_close(pair.prefill(slot, ids[20:]), pair.expected(ids)[-1])


def test_steps(pair: Pair) -> None:
    ids = tokens_of(3, 25)
    expected = pair.expected(ids)
    with pair.open(1, capacity=25) as (slot,):
        pair.prefill(slot, ids[:10])
        for position in range(10, 25):
            assert_close(pair.step([slot], [ids[position]])[0], expected[position])


def test_steps_of_slots_of_different_lengths(pair: Pair) -> None:
    lengths = (3, 17, 9, 1)
    sequences = [tokens_of(10 + length, length + 5) for length in lengths]
    expected = [pair.expected(ids) for ids in sequences]
    with pair.open(4) as slots:
        for slot, ids, length in zip(slots, sequences, lengths, strict=True):
            pair.prefill(slot, ids[:length])
        for i in range(5):
            logits = pair.step(slots, [ids[n + i] for ids, n in zip(sequences, lengths, strict=True)])
            assert_close(logits, np.stack([rows[n + i] for rows, n in zip(expected, lengths, strict=True)]))


def test_verify(pair: Pair) -> None:
    ids = tokens_of(4, 30)
    with pair.open(1) as (slot,):
        pair.prefill(slot, ids[:22])
        assert_close(pair.verify(slot, ids[22:]), pair.expected(ids)[22:])


def test_truncate_and_continue(pair: Pair) -> None:
    ids, others = tokens_of(5, 20), tokens_of(6, 6)
    with pair.open(1) as (slot,):
        pair.prefill(slot, ids)
        pair.decoder.truncate(slot, 12)
        assert pair.decoder.length(slot) == 12
        assert_close(pair.verify(slot, others), pair.expected(ids[:12] + others)[12:])


def test_fork_and_diverge(pair: Pair) -> None:
    ids, ours, theirs = tokens_of(7, 15), tokens_of(8, 4), tokens_of(9, 4)
    with pair.open(2) as (first, second):
        pair.prefill(first, ids)
        pair.decoder.fork(first, second, 13)
        for i in range(4):
            logits = pair.step([first, second], [ours[i], theirs[i]])
            assert_close(logits[0], pair.expected(ids + ours[: i + 1])[-1])
            assert_close(logits[1], pair.expected(ids[:13] + theirs[: i + 1])[-1])


def test_greedy_tokens_are_those_of_transformers(pair: Pair) -> None:
    ids = tokens_of(11, 10)
    with torch.no_grad():
        generated = pair.llm.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, 10), max_new_tokens=32, do_sample=False, pad_token_id=0
        )
    with pair.open(1) as (slot,):
        assert pair.greedy(slot, pair.prefill(slot, ids), 32) == generated[0, 10:].tolist()


# Slots and rounds, on one variant


def test_slots_of_several_caches_in_any_order(base: Pair) -> None:
    lengths = (4, 11, 2, 7, 19)
    sequences = [tokens_of(20 + i, length + 1) for i, length in enumerate(lengths)]
    with base.open(4, capacity=30) as near, base.open(3, capacity=40) as far:
        slots = [near[3], far[2], near[0], far[0], near[1]]  # near[2] and far[1] stay empty
        for slot, ids in zip(slots, sequences, strict=True):
            base.prefill(slot, ids[:-1])
        logits = base.step(slots, [ids[-1] for ids in sequences])
        assert_close(logits, np.stack([base.expected(ids)[-1] for ids in sequences]))
        assert [base.decoder.length(slot) for slot in slots] == [length + 1 for length in lengths]
        assert base.decoder.length(near[2]) == base.decoder.length(far[1]) == 0


def test_fork_into_another_cache(base: Pair) -> None:
    ids, more = tokens_of(30, 12), tokens_of(31, 3)
    with base.open(2, capacity=12) as (_, source), base.open(2, capacity=40) as (_, target):
        base.prefill(source, ids)
        base.decoder.fork(source, target, 12)
        assert_close(base.verify(target, more), base.expected(ids + more)[12:])


def test_alone_and_batched_slots_choose_the_same_tokens(base: Pair) -> None:
    prompts = [tokens_of(40 + i, length) for i, length in enumerate((5, 14, 9))]
    alone = []
    for ids in prompts:
        with base.open(1) as (slot,):
            alone.append(base.greedy(slot, base.prefill(slot, ids), 24))
    with base.open(3) as slots:
        logits = np.stack([base.prefill(slot, ids) for slot, ids in zip(slots, prompts, strict=True)])
        together = [[int(token)] for token in logits.argmax(axis=1)]
        for _ in range(23):
            logits = base.step(slots, [tokens[-1] for tokens in together])
            for tokens, token in zip(together, logits.argmax(axis=1), strict=True):
                tokens.append(int(token))
    assert together == alone


def test_truncate_and_append_again_is_the_same(base: Pair) -> None:
    ids = tokens_of(50, 20)
    with base.open(1) as (slot,):
        first = base.prefill(slot, ids)
        base.decoder.truncate(slot, 0)
        np.testing.assert_array_equal(base.prefill(slot, ids), first)


def test_a_round_of_everything(base: Pair) -> None:
    """Prompts, steps, a draft, a fork and a truncation at once."""
    ids, more = tokens_of(80, 20), tokens_of(81, 5)
    with base.open(3) as (recording, first, second), base.open(3) as (third, fourth, fifth):
        for slot, count in ((recording, 12), (first, 9), (third, 15), (fourth, 20)):
            base.prefill(slot, ids[:count])
        rows = base.decoder.forward(
            [
                Chunk(second, more, keep=12, source=recording),
                Chunk(first, [ids[9]]),
                Chunk(fourth, more, wanted=3, keep=10),
                Chunk(third, [ids[15]], wanted=0),
                Chunk(fifth, base.decoder.embed(ids[:7])),
                Chunk(recording, [ids[12]]),
            ]
        )
        assert [len(each) for each in rows] == [1, 1, 3, 0, 1, 1]
        assert_close(rows[0], base.expected(ids[:12] + more)[-1:])
        assert_close(rows[1], base.expected(ids[:10])[-1:])
        assert_close(rows[2], base.expected(ids[:10] + more)[-3:])
        assert_close(rows[4], base.expected(ids[:7])[-1:])
        assert_close(rows[5], base.expected(ids[:13])[-1:])
        assert [base.decoder.length(slot) for slot in (recording, first, second, third, fourth, fifth)] == [
            13,
            10,
            17,
            16,
            15,
            7,
        ]
        assert_close(base.step([third], [ids[16]]), base.expected(ids[:17])[-1:])


def test_likeliest_tokens_in_place_of_logits(base: Pair) -> None:
    """In rounds with chunks that want logits, of steps and of drafts."""
    ids = tokens_of(83, 20)
    with base.open(4) as slots:
        for slot, count in zip(slots, (5, 9, 3, 12), strict=True):
            base.prefill(slot, ids[:count])
        steps = [Chunk(slots[i], [ids[i]], likeliest=i != 1) for i in range(3)]
        draft = Chunk(slots[3], ids[12:16], wanted=3, likeliest=True)
        found = base.decoder.forward([*steps, draft])
        for slot, count in zip(slots, (5, 9, 3, 12), strict=True):
            base.decoder.truncate(slot, count)
        plain = [Chunk(chunk.slot, chunk.inputs, chunk.wanted) for chunk in (*steps, draft)]
        logits = base.decoder.forward(plain)
    assert [rows.shape for rows in found] == [(1, 2), (1, BASE["vocab_size"]), (1, 2), (3, 2)]
    np.testing.assert_array_equal(found[1], logits[1])
    for i in (0, 2, 3):
        np.testing.assert_array_equal(found[i][:, 0], logits[i].argmax(axis=1))
        np.testing.assert_allclose(found[i], likeliest(logits[i]), atol=2e-6, rtol=0)


def test_more_positions_than_the_model_has_are_refused(base: Pair) -> None:
    assert base.decoder.max_length == MAX_LENGTH
    with pytest.raises(CapacityError, match=r"need 129 positions, the KV cache has 128: shorten the prompt"):
        base.open(1, capacity=129)


def test_more_positions_than_reserved_are_refused(base: Pair) -> None:
    with base.open(2, capacity=6) as (slot, other):
        base.prefill(slot, [1, 2, 3, 4])
        for append in (base.prefill, base.verify):
            with pytest.raises(CapacityError, match=r"4 \+ 3 positions exceed the 6 reserved for this request"):
                append(slot, [1, 2, 3])
        base.verify(slot, [5, 6])
        with pytest.raises(CapacityError, match=r"6 \+ 1 positions exceed the 6 reserved"):
            base.step([slot, other], [1, 2])
        assert (base.decoder.length(slot), base.decoder.length(other)) == (6, 0)
        base.decoder.truncate(slot, 5)
        assert_close(base.step([slot], [9])[0], base.expected([1, 2, 3, 4, 5, 9])[-1])


def test_the_last_position_can_be_used(base: Pair) -> None:
    ids = tokens_of(70, MAX_LENGTH)
    with base.open(1, capacity=MAX_LENGTH) as (slot,):
        base.prefill(slot, ids[:-1])
        assert_close(base.step([slot], ids[-1:])[0], base.expected(ids)[-1])


def test_a_slot_that_was_given_back_is_refused(base: Pair) -> None:
    with base.open(1) as (slot,), base.open(1) as (other,):
        base.prefill(other, [1, 2])
        lease = base.open(1)
        base.prefill(lease.slots[0], [1, 2, 3])
        lease.close()
        lease.close()  # does nothing
        with pytest.raises(ClosedError, match="was given back"):
            base.step([slot, lease.slots[0]], [1, 2])
        with pytest.raises(ClosedError, match="was given back"):
            base.decoder.forward([Chunk(slot, [1], keep=2, source=lease.slots[0])])
        assert (base.decoder.length(slot), base.decoder.length(other)) == (0, 2)
