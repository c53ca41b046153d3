"""The ONNX decoder against transformers: logits of every way to append, and slots that share, fork and roll back."""

import gc
import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.decoders.embedding_table import EmbeddingTable
from salmonrun.runtime.decoders.kv_cache import Rows
from salmonrun.runtime.decoders.onnx_decoder import BRIDGED, SessionGraph
from salmonrun.runtime.errors import CapacityError, ClosedError
from salmonrun.runtime.manifest import EmbeddingSpec, LlmSpec, LlmWeights, OnnxWeights
from tests.helpers.bundles import bundle_of
from tests.helpers.llms import BASE, MAX_LENGTH, Pair

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
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
        "rope_scaling": LLAMA3,
        "tie_word_embeddings": False,
    },
    "odd sizes": {"hidden_size": 80, "intermediate_size": 101, "vocab_size": 53, "head_dim": 48},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for their threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=list(VARIANTS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(BASE | VARIANTS[request.param], tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(BASE, tmp_path_factory.mktemp("llm"))


def tokens_of(seed: int, count: int, below: int = 50) -> list[int]:
    return np.random.default_rng(seed).integers(0, below, count).tolist()


def assert_close(found: F32, expected: F32) -> None:
    """Within 1e-4, for logits of order one."""
    assert found.shape == expected.shape
    scale = max(1.0, float(np.sqrt(np.mean(np.square(expected)))))
    assert np.abs(found - expected).max() <= 1e-4 * scale


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


# Slots and their memory, on one variant


def test_slots_of_several_caches_in_any_order(base: Pair) -> None:
    lengths = (4, 11, 2, 7, 19)
    sequences = [tokens_of(20 + i, length + 1) for i, length in enumerate(lengths)]
    with base.open(4, capacity=30) as near, base.open(3, capacity=40) as far:
        slots = [near[3], far[2], near[0], far[0], near[1]]  # near[2] and far[1] stay empty
        for slot, ids in zip(slots, sequences, strict=True):
            base.prefill(slot, ids[:-1])
        logits = base.step(slots, [ids[-1] for ids in sequences])
        assert_close(logits, np.stack([base.expected(ids)[-1] for ids in sequences]))
        assert [slot.length for slot in slots] == [length + 1 for length in lengths]
        assert near[2].length == far[1].length == 0


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


def test_runs_write_their_own_positions_only(base: Pair) -> None:
    """Reserved memory is neither read nor written: NaNs in it stay there and spread nowhere."""
    ids = tokens_of(60, 12)
    with base.open(3, capacity=20) as slots:
        buffers = slots[0].cache.buffers
        for buffer in buffers:
            buffer[:] = np.nan
        base.prefill(slots[1], ids[:8])
        base.prefill(slots[2], ids[:4])
        for position in range(8, 12):
            logits = base.step(slots[1:], [ids[position], ids[position - 4]])
        assert_close(logits, np.stack([base.expected(ids)[-1], base.expected(ids[:8])[-1]]))
        written = np.zeros(buffers[0].shape[::2], bool)
        written[1, :12] = written[2, :8] = True
        for before, buffer in zip(buffers, slots[0].cache.buffers, strict=True):
            assert buffer is before
            np.testing.assert_array_equal(~np.isnan(buffer), np.broadcast_to(written[:, None, :, None], buffer.shape))


def test_past_and_present_are_the_cache_itself(base: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: dict[str, int] = {}
    for kind in ("input", "output"):
        bind = getattr(onnxruntime.IOBinding, f"bind_ortvalue_{kind}")

        def spy(self: Any, name: str, value: onnxruntime.OrtValue, bind: Any = bind) -> None:
            bound[name] = value.data_ptr()
            bind(self, name, value)

        monkeypatch.setattr(onnxruntime.IOBinding, f"bind_ortvalue_{kind}", spy)
    base.decoder._pool._spare = None  # what is bound for it stays bound
    with base.open(3) as slots:
        base.prefill(slots[1], [1, 2, 3])
        for layer in range(2):
            for kind, buffers in (("key", slots[1].cache.keys), ("value", slots[1].cache.values)):
                address = buffers[layer][1:2].ctypes.data
                assert bound[f"past_{kind}.{layer}"] == bound[f"present_{kind}.{layer}"] == address


def test_memory_of_one_cache_is_kept_until_another_is_needed(base: Pair) -> None:
    gc.collect()
    gc.disable()
    try:
        with base.open(2) as slots:
            base.prefill(slots[0], [1, 2, 3])
            buffer = weakref.ref(slots[0].cache.keys[0])
            with base.open(1) as (other,):
                assert other.cache is slots[0].cache
            del other
        assert base.decoder._pool.caches == []
        del slots
        assert buffer() is not None
        with base.open(9):  # more rows than the kept one has
            assert buffer() is None
    finally:
        gc.enable()


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
        assert (slot.length, other.length) == (0, 2)


# Rounds


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
        assert [slot.length for slot in (recording, first, second, third, fourth, fifth)] == [13, 10, 17, 16, 15, 7]
        assert_close(base.step([third], [ids[16]]), base.expected(ids[:17])[-1:])


def test_nothing_is_computed_for_no_logits(base: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []
    run = SessionGraph.run

    def spy(self: SessionGraph, inputs: dict[str, Any], rows: Rows, logits: F32) -> None:
        wanted.append(inputs["logit_positions"].tolist())
        run(self, inputs, rows, logits)

    monkeypatch.setattr(SessionGraph, "run", spy)
    ids = tokens_of(82, 9)
    with base.open(1) as (slot,):
        base.decoder.forward([Chunk(slot, ids[:8], wanted=0)])
        assert_close(base.step([slot], ids[8:]), base.expected(ids)[-1:])
    assert wanted == [[], [0]]


@pytest.mark.parametrize("places", [(0, 3), (0, 1, 4), (1, 7), (0, 2, 3, 6)])
def test_rows_between_run_along_and_keep_what_they_have(base: Pair, places: tuple[int, ...]) -> None:
    """Idle rows, the full and the free among them, are as if they had not been there; all of it up to two between."""
    sequences = [tokens_of(90 + i, 8 + i) for i in range(8)]
    leases = [base.open(1, capacity=9 + i) for i in range(8)]
    slots = [lease.slots[0] for lease in leases]
    assert [slot.row for slot in slots] == list(range(8))
    for slot, ids in zip(slots, sequences, strict=True):
        base.prefill(slot, ids)
    base.verify(slots[2], [7]) if 2 not in places else None  # is full now
    leases[5].close()
    runs: list[int] = []
    run = SessionGraph.run

    def spy(self: SessionGraph, inputs: dict[str, Any], rows: Rows, logits: F32) -> None:
        runs.append(len(inputs["inputs_embeds"]))
        run(self, inputs, rows, logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SessionGraph, "run", spy)
        logits = base.step([slots[place] for place in places], [3] * len(places))
    gaps = [b - a - 1 for a, b in itertools.pairwise(places)]
    assert len(runs) == 1 + sum(gap > BRIDGED for gap in gaps)
    for row, place in zip(logits, places, strict=True):
        assert_close(row, base.expected([*sequences[place], 3])[-1])
    for place in set(range(8)) - {*places, 2, 5}:
        assert slots[place].length == len(sequences[place])
        assert_close(base.step([slots[place]], [4])[0], base.expected([*sequences[place], 4])[-1])
    for lease in leases:
        lease.close()


# What does not fit


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
        assert (slot.length, other.length) == (6, 0)
        base.decoder.truncate(slot, 5)
        assert_close(base.step([slot], [9])[0], base.expected([1, 2, 3, 4, 5, 9])[-1])


def test_the_last_position_can_be_used(base: Pair) -> None:
    ids = tokens_of(70, MAX_LENGTH)
    with base.open(1, capacity=MAX_LENGTH) as (slot,):
        base.prefill(slot, ids[:-1])
        assert_close(base.step([slot], ids[-1:])[0], base.expected(ids)[-1])


# Embeddings


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_embeddings_are_the_stored_rows(dtype: Any, tmp_path: Path) -> None:
    rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    stored: npt.NDArray[np.uint8] = rows.view(torch.uint8).numpy()
    stored.tofile(tmp_path / "rows.bin")
    spec = EmbeddingSpec("rows.bin", dtype, 9, 6)
    weights = LlmWeights(OnnxWeights("float32", "fp32", "fp32"))
    llm = LlmSpec(9, 6, 1, 1, 1, 16, 1e-5, (None,), None, 128, spec, weights)
    found = EmbeddingTable(bundle_of(tmp_path, llm, {}), spec)([3, 0, 3, 8])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows[[3, 0, 3, 8]].float().numpy())
    assert EmbeddingTable(bundle_of(tmp_path, llm, {}), spec)([]).shape == (0, 6)
