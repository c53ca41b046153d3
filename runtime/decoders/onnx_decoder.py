"""The decoder on ONNX Runtime: one graph for prefill, step and verify, KV buffers updated in place."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from salmonrun.runtime.arrays import F32, Array
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import Limits
from salmonrun.runtime.decoder import (
    Chunk,
    DecoderReport,
    Lease,
    answered,
    begin,
    check_capacity,
    check_room,
    inputs_of,
)
from salmonrun.runtime.decoders.cache_budget import CacheBudget
from salmonrun.runtime.decoders.embedding_table import EmbeddingTable
from salmonrun.runtime.decoders.kv_cache import KVCache, KVPool, Rows, Slot
from salmonrun.runtime.device import Device
from salmonrun.runtime.onnx_runtime import onnxruntime
from salmonrun.runtime.session import Graph, load_graph, running

# Rows between two that take a step which may take it with them, for nothing: an idle row costs less than another run.
BRIDGED = 2


class LlmGraph(Protocol):
    """Runs the LLM's graph: see docs/bundle.md for its inputs and outputs."""

    def run(self, inputs: dict[str, Array], rows: Rows, logits: F32) -> None:
        """Fill `logits` [B, K, V]; append to the rows in place. Runs do not overlap."""
        ...

    def describe(self) -> DecoderReport:
        """What runs it."""
        ...


class SessionGraph:
    """The graph in a session of ONNX Runtime."""

    def __init__(self, graph: Graph, device: Device) -> None:
        self._session = graph.session
        self._elsewhere = graph.elsewhere
        self._device = device
        self._bindings: WeakKeyDictionary[Rows, onnxruntime.IOBinding] = WeakKeyDictionary()

    def run(self, inputs: dict[str, Array], rows: Rows, logits: F32) -> None:
        """Rows are bound as inputs and outputs, once, so that nothing is copied and little is done for a token."""
        binding = self._bindings.get(rows) or self._bind(rows)
        bound = {name: np.ascontiguousarray(array) for name, array in inputs.items()}  # a binding keeps none alive
        for name, array in bound.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(logits))
        with running("llm"):
            self._session.run_with_iobinding(binding)

    def _bind(self, rows: Rows) -> onnxruntime.IOBinding:
        binding = self._bindings[rows] = self._session.io_binding()
        for name, array in named_buffers(rows).items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_", "present_"), value)
        return binding

    def describe(self) -> DecoderReport:
        """What the session really uses."""
        threads = self._session.get_session_options().intra_op_num_threads
        providers = tuple(self._session.get_providers())
        return DecoderReport("onnx", self._device, providers, threads, elsewhere=self._elsewhere)


@dataclass(frozen=True, eq=False)
class _Run:
    """Neighbouring rows of a cache, of which each that has a chunk gets as many positions."""

    cache: KVCache
    first: int
    end: int
    members: list[int]  # indices of the chunks


class OnnxDecoder:
    """Satisfies `runtime.decoder.Decoder`.

    GroupQueryAttention takes one new position for each row of a batch, or many for a single row: chunks of one position
    are run together where their rows are neighbours, longer ones one by one. Rounds do not overlap. A row without a
    chunk that runs along writes behind its end, which the next position of its own overwrites: that is why each has a
    position to spare.
    """

    def __init__(self, bundle: Bundle, graph: LlmGraph, limits: Limits | None = None) -> None:
        self._spec = spec = bundle.manifest.llm
        self._dtype: Any = np.dtype(bundle.onnx_weights.dtype)
        self.embed = EmbeddingTable(bundle, spec.embedding)
        self._graph = graph
        self._pool = KVPool(spec.layers, spec.kv_heads, spec.head_dim, self._dtype, spec.max_length)
        self._budget = CacheBudget.of(spec, spec.head_dim * self._dtype.itemsize, limits)
        self._round = threading.RLock()

    @classmethod
    def load(cls, bundle: Bundle, device: Device, threads: int, limits: Limits | None = None) -> "OnnxDecoder":
        """The decoder of a bundle.

        Raises:
            BundleError: it has no weights for ONNX Runtime, or this does not take its graph.
        """
        return cls(bundle, SessionGraph(load_graph(bundle, "llm", device, threads, limits), device), limits)

    @property
    def max_length(self) -> int:
        """Positions a slot can have at most."""
        return self._spec.max_length

    def open(self, count: int, capacity: int) -> Lease[Slot]:
        """`count` neighbouring empty slots with room for `capacity` positions each.

        Raises:
            BusyError: the limits have not so much memory left.
            CapacityError: no slot has so many positions, or the limits so much memory at all.
        """
        check_capacity(self.max_length, capacity)
        positions = count * (capacity + 1)  # one to spare
        self._budget.take(positions)
        lease = self._pool.lease(count, capacity)

        def give_back(_: Sequence[Slot]) -> None:
            lease.close()
            self._budget.give_back(positions)

        return Lease(lease.slots, give_back)

    def forward(self, chunks: Sequence[Chunk[Slot]]) -> list[F32]:
        """One round: see `runtime.decoder.Decoder`."""
        embeds = inputs_of(self, chunks)
        with self._round:
            for chunk in chunks:
                chunk.slot.check_open()
            begin(self, chunks)
            for chunk, new in zip(chunks, embeds, strict=True):
                check_room(chunk.slot.length, len(new), chunk.slot.capacity)
            logits = self._run_all(chunks, embeds)
            for chunk, new in zip(chunks, embeds, strict=True):  # all or none
                chunk.slot.length += len(new)
        return answered(chunks, logits)

    def length(self, slot: Slot) -> int:
        """Positions the slot has."""
        return slot.length

    def truncate(self, slot: Slot, length: int) -> None:
        """Forget the positions from `length` on."""
        slot.truncate(length)

    def fork(self, source: Slot, target: Slot, length: int) -> None:
        """Make `target` a copy of the first `length` positions of `source`."""
        with self._round:  # not while the target runs along
            target.copy_from(source, length)

    def describe(self) -> DecoderReport:
        """What runs the graph."""
        return replace(self._graph.describe(), cache_bytes=self._pool.bytes, cache_usage=self._budget.usage)

    def _run_all(self, chunks: Sequence[Chunk[Slot]], embeds: Sequence[F32]) -> list[F32]:
        logits: list[F32] = [np.empty((0, self._spec.vocab_size), np.float32)] * len(chunks)
        for run in _runs(chunks, embeds):
            new = len(embeds[run.members[0]])
            wanted = max(chunks[i].wanted for i in run.members)
            batch = np.zeros((run.end - run.first, new, self._spec.dim), self._dtype)
            places = [chunks[i].slot.row - run.first for i in run.members]
            for i, place in zip(run.members, places, strict=True):
                batch[place] = embeds[i]
            rows = self._run(run, batch, wanted)
            for i, place in zip(run.members, places, strict=True):
                logits[i] = rows[place, wanted - chunks[i].wanted :]
        return logits

    def _run(self, run: _Run, embeds: Array, wanted: int) -> F32:
        """Logits [rows, wanted, V] of the last positions of embeddings [rows, n, dim]."""
        new = embeds.shape[1]
        lengths = np.array([run.cache.past(row) + new for row in range(run.first, run.end)], np.int32)
        inputs = {
            "inputs_embeds": embeds,
            "seqlens_k": lengths - 1,
            "total_sequence_length": lengths.max(),
            "logit_positions": np.arange(new - wanted, new),
        }
        logits = np.empty((len(lengths), wanted, self._spec.vocab_size), np.float32)
        self._graph.run(inputs, run.cache.view(run.first, run.end), logits)
        return logits


def named_buffers(rows: Rows) -> dict[str, Array]:
    """Keys and values by the names of the graph's inputs."""
    keys = {f"past_key.{layer}": buffer for layer, buffer in enumerate(rows.keys)}
    return keys | {f"past_value.{layer}": buffer for layer, buffer in enumerate(rows.values)}


def _runs(chunks: Sequence[Chunk[Slot]], embeds: Sequence[F32]) -> Iterator[_Run]:
    """How a round is run: chunks of one position in neighbouring rows together, any other alone."""
    waiting: list[int] = []
    single = [i for i, new in enumerate(embeds) if len(new) == 1]
    for i in sorted(single, key=lambda i: (id(chunks[i].slot.cache), chunks[i].slot.row)):
        if waiting and not _side_by_side(chunks[waiting[-1]].slot, chunks[i].slot):
            yield _run_of(chunks, waiting)
            waiting = []
        waiting.append(i)
    if waiting:
        yield _run_of(chunks, waiting)
    for i, new in enumerate(embeds):
        if len(new) > 1:
            yield _run_of(chunks, [i])


def _side_by_side(slot: Slot, other: Slot) -> bool:
    return slot.cache is other.cache and other.row - slot.row <= BRIDGED + 1


def _run_of(chunks: Sequence[Chunk[Slot]], members: list[int]) -> _Run:
    first, last = chunks[members[0]].slot, chunks[members[-1]].slot
    return _Run(first.cache, first.row, last.row + 1, members)
