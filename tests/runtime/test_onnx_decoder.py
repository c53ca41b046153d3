"""What is the ONNX decoder's own: what is bound, which rows run along, whose memory is kept. More: test_decoders.py."""

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
from salmonrun.runtime.manifest import EmbeddingSpec, LlmSpec, LlmWeights, OnnxWeights
from tests.helpers.bundles import bundle_of
from tests.helpers.llms import BASE, Pair, assert_close, tokens_of


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for their threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(BASE, tmp_path_factory.mktemp("llm"))


# Slots and their memory, on one variant


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


# Rounds


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
