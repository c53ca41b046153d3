"""The decoder on our own kernels for CPUs: the whole forward pass in C++, one call a round.

A token's logits do not depend on what else is in its round, on how its prompt was cut, on threads or instruction set:
kernels/reference.py says what they are, to the bit.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import KvCacheType, Limits
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
from salmonrun.runtime.decoders.native_weights import load_model
from salmonrun.runtime.errors import ClosedError
from salmonrun.runtime.matrices import kernels
from salmonrun.runtime.tensor_file import TensorFile

if TYPE_CHECKING:
    from salmonrun.kernels.cpu import _native

PAGE = 64  # positions: `page_size` in kernels/cpu/operations.h
SCALE = 4  # bytes, of keys or values of a head in int8


@dataclass(frozen=True, eq=False)
class NativeSlot:
    """One sequence of the KV cache."""

    sequence: int
    capacity: int  # positions it may have


class NativeDecoder:
    """Satisfies `runtime.decoder.Decoder`. Rounds do not overlap."""

    def __init__(
        self,
        bundle: Bundle,
        model: "_native.Model",
        limits: Limits | None,
        kv_cache: KvCacheType,
        released: TensorFile | None,
    ) -> None:
        spec = bundle.manifest.llm
        self.embed = EmbeddingTable(bundle, spec.embedding)
        native = spec.weights.native
        self._weights = bundle.path(native.file) if native and not bundle.private else None
        self._vocab_size = spec.vocab_size
        self._max_length = spec.max_length
        self._model = model
        self._released = released  # its weights, if their memory is given back when no slot is open
        self._open: set[int] = set()  # sequences
        self._budget = CacheBudget.of(spec, spec.head_dim + SCALE if kv_cache == "int8" else 2 * spec.head_dim, limits)
        # The extension takes one call at a time; the collector may close a lease while this thread is about to call it.
        self._round = threading.RLock()

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        threads: int,
        instruction_set: str | None = None,
        limits: Limits | None = None,
        kv_cache: KvCacheType = "fp16",
        release_weights: bool = False,
    ) -> "NativeDecoder":
        """The decoder of a bundle.

        Args:
            bundle: one that has weights for it.
            threads: to compute with.
            instruction_set: one that the processor has; None: the fastest.
            limits: the engine's; None: keys and values may take any memory.
            kv_cache: what keys and values are kept as.
            release_weights: give the memory of the weights back to the system whenever the last slot is closed.

        Raises:
            BundleError: it has no weights for the native decoder, or they are not as the manifest says.
            MissingExtraError: the kernels were not built.
        """
        name = instruction_set or kernels().instruction_sets()[0]
        model, file = load_model(bundle, name, threads, 8 if kv_cache == "int8" else 16)
        return cls(bundle, model, limits, kv_cache, file if release_weights else None)

    @property
    def max_length(self) -> int:
        """Positions a slot can have at most."""
        return self._max_length

    def open(self, count: int, capacity: int) -> Lease[NativeSlot]:
        """`count` empty slots with room for `capacity` positions each; memory is taken as they grow.

        Raises:
            BusyError: the limits have not so much memory left.
            CapacityError: no slot has so many positions, or the limits so much memory at all.
        """
        check_capacity(self.max_length, capacity)
        with self._round:
            self._budget.take(count * _whole_pages(capacity))
            slots = [NativeSlot(self._model.open(), capacity) for _ in range(count)]
            self._open.update(slot.sequence for slot in slots)
        return Lease(slots, self._give_back)

    def forward(self, chunks: Sequence[Chunk[NativeSlot]]) -> list[F32]:
        """One round: see `runtime.decoder.Decoder`."""
        embeds = inputs_of(self, chunks)
        with self._round:
            for chunk in chunks:
                self._check_open(chunk.slot)
            begin(self, chunks)
            for chunk, new in zip(chunks, embeds, strict=True):
                check_room(self.length(chunk.slot), len(new), chunk.slot.capacity)
            return answered(chunks, self._run(chunks, embeds))

    def length(self, slot: NativeSlot) -> int:
        """Positions the slot has."""
        with self._round:
            self._check_open(slot)
            return self._model.length(slot.sequence)

    def truncate(self, slot: NativeSlot, length: int) -> None:
        """Forget the positions from `length` on."""
        with self._round:
            self._check_open(slot)
            self._model.truncate(slot.sequence, length)

    def fork(self, source: NativeSlot, target: NativeSlot, length: int) -> None:
        """Make `target` a copy of the first `length` positions of `source`; they share memory until one goes on."""
        with self._round:
            self._check_open(source)
            self._check_open(target)
            self._model.fork(source.sequence, target.sequence, length)

    def describe(self) -> DecoderReport:
        """What the extension runs with."""
        model = self._model
        return DecoderReport(
            name="native",
            device="cpu",
            providers=(),
            threads=model.threads,
            cache_bytes=model.cache_bytes,
            cache_usage=self._budget.usage,
            instruction_set=model.instruction_set,
            weights=self._weights,
        )

    def _run(self, chunks: Sequence[Chunk[NativeSlot]], embeds: Sequence[F32]) -> list[F32]:
        if not chunks:
            return []
        table = np.array(
            [(chunk.slot.sequence, len(new), chunk.wanted) for chunk, new in zip(chunks, embeds, strict=True)], np.int32
        )
        wanted = table[:, 2]
        logits = np.empty((int(wanted.sum()), self._vocab_size), np.float32)
        self._model.forward(table, np.concatenate(embeds, dtype=np.float32), logits)
        return np.split(logits, np.cumsum(wanted[:-1]))

    def _check_open(self, slot: NativeSlot) -> None:
        if slot.sequence not in self._open:
            raise ClosedError("this sequence was given back: use it inside the `with` block that opened it")

    def _give_back(self, slots: Sequence[NativeSlot]) -> None:
        with self._round:
            for slot in slots:
                self._open.discard(slot.sequence)
                self._model.close(slot.sequence)
            self._budget.give_back(sum(_whole_pages(slot.capacity) for slot in slots))
            if self._released and not self._open:
                self._released.release()


def _whole_pages(positions: int) -> int:
    return -(-positions // PAGE) * PAGE
