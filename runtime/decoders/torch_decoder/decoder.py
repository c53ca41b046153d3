"""The decoder on PyTorch. Chunks of one token run together as a step; any other runs by itself, in pieces."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import Limits
from salmonrun.runtime.cuda.memory import session_limit, weights_on_gpu
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
from salmonrun.runtime.decoders.torch_decoder.attention import Attention, choose_attention
from salmonrun.runtime.decoders.torch_decoder.model import Pool, TorchModel
from salmonrun.runtime.decoders.torch_decoder.pages import PAGE, SCRATCH, PagedSlot, PageTable, pages_of
from salmonrun.runtime.decoders.torch_decoder.steps import BATCHES, StepLayers, Steps, places_of, torch_layers
from salmonrun.runtime.decoders.torch_decoder.weights import load_model
from salmonrun.runtime.errors import ConfigError, MissingExtraError
from salmonrun.runtime.manifest import LlmSpec

PIECE = 512  # positions of a prompt that are computed at once, to bound the memory
ROWS = 2**13  # of the embedding table, that are brought to the device at once
SEQUENCES = 64  # of the greatest length, that the pool has room for, if there is no limit
SHARE = 0.5  # of a GPU's memory that is free, and allowed, that the pool takes at most, if it has no limit of its own

Kernels = Literal["torch", "triton"]  # of steps: PyTorch's and what else is installed, or our own


class TorchDecoder:
    """Satisfies `runtime.decoder.Decoder`. Rounds do not overlap."""

    def __init__(
        self,
        bundle: Bundle,
        model: TorchModel,
        threads: int,
        limits: Limits | None,
        attention: Attention | None = None,
        captured: bool = True,
        kernels: Kernels = "torch",
    ) -> None:
        spec = bundle.manifest.llm
        self.embed = EmbeddingTable(bundle, spec.embedding)
        self._max_length = spec.max_length
        self._vocab_size = spec.vocab_size
        self._model = model
        self._threads = threads
        self._device = model.cos.device
        self._attention = attention or choose_attention(self._device, model.dtype)
        page = PAGE * 2 * spec.layers * spec.kv_heads * spec.head_dim * model.dtype.itemsize
        pages = _pool_pages(bundle, page, self._device, limits)
        self._budget = CacheBudget(page // PAGE, pages * page)
        self._table = PageTable(pages)
        shape = (spec.layers, 1 + pages, PAGE, spec.kv_heads, spec.head_dim)
        # Reserved: a CPU has memory taken as pages are written, a GPU now.
        self._pool = Pool(*(torch.empty(shape, dtype=model.dtype, device=self._device) for _ in range(2)))
        self._pool.clear([SCRATCH])
        self._layers = _choose_layers(kernels, model, self._attention)
        self._steps = Steps(model, self._pool, self._layers, self._embeddings(), spec.max_length, captured)
        # The collector may close a lease while this thread computes.
        self._round = threading.RLock()

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        device: str,
        threads: int,
        limits: Limits | None = None,
        attention: Attention | None = None,
        captured: bool = True,
        kernels: Kernels = "torch",
    ) -> "TorchDecoder":
        """The decoder of a bundle.

        Args:
            bundle: with weights for PyTorch.
            device: of PyTorch's: "cpu", "cuda", "cuda:1".
            threads: of PyTorch on a CPU.
            limits: of the pool.
            attention: an implementation; None: the fastest there is.
            captured: whether steps are CUDA graphs, where they can be.
            kernels: what computes a step's layers; "triton" are our own (docs/gpu.md).

        Raises:
            BundleError: it has no weights for PyTorch, or they are not as the manifest says.
            ConfigError: there are no such kernels.
            DeviceError: they do not run there.
            MissingExtraError: Triton is not installed.
        """
        where = torch.device(device)
        with torch.inference_mode():
            model = load_model(bundle, where, _activations(bundle.manifest.llm, where))
            return cls(bundle, model, threads, limits, attention, captured, kernels)

    @property
    def max_length(self) -> int:
        """Positions a slot can have at most."""
        return self._max_length

    def open(self, count: int, capacity: int) -> Lease[PagedSlot]:
        """`count` empty slots with room for `capacity` positions each; pages of the pool are taken as they grow.

        Raises:
            BusyError: the pool has not so many pages left.
            CapacityError: no slot has so many positions, or the pool so many pages at all.
        """
        check_capacity(self.max_length, capacity)
        with self._round:
            self._budget.take(count * PAGE * pages_of(capacity))
            return Lease([PagedSlot(capacity) for _ in range(count)], self._give_back)

    def forward(self, chunks: Sequence[Chunk[PagedSlot]]) -> list[F32]:
        """One round: see `runtime.decoder.Decoder`."""
        embeds = inputs_of(self, chunks)
        with self._round, torch.inference_mode(), self._own_threads():
            for chunk in chunks:
                chunk.slot.check_open()
            begin(self, chunks)
            for chunk, new in zip(chunks, embeds, strict=True):
                check_room(chunk.slot.length, len(new), chunk.slot.capacity)
            self._grow(chunks)
            logits = self._run(chunks, embeds)
            for chunk, new in zip(chunks, embeds, strict=True):  # all or none
                chunk.slot.length += len(new)
        return logits

    def length(self, slot: PagedSlot) -> int:
        """Positions the slot has."""
        slot.check_open()
        return slot.length

    def truncate(self, slot: PagedSlot, length: int) -> None:
        """Forget the positions from `length` on."""
        with self._round:
            slot.check_open()
            self._table.truncate(slot, length)

    def fork(self, source: PagedSlot, target: PagedSlot, length: int) -> None:
        """Make `target` a copy of the first `length` positions of `source`; they share pages until one goes on."""
        with self._round:
            source.check_open()
            target.check_open()
            self._table.share(source, target, length)

    def describe(self) -> DecoderReport:
        """What runs."""
        return DecoderReport(
            name="torch",
            device=str(self._device),
            providers=(),
            threads=self._threads,
            cache_bytes=self._pool.bytes,
            cache_usage=self._budget.usage,
            kernels={
                "torch": torch.__version__,
                "activations": str(self._model.dtype).removeprefix("torch."),
                "attention": self._attention.name,
                "products": ", ".join(self._model.products),
                "steps": "CUDA graphs" if self._steps.captured else "eager",
                "step kernels": self._layers.name,
            },
        )

    def _embeddings(self) -> Tensor:
        """The table [V, dim] on the device, brought there in pieces."""
        pieces = [range(first, min(first + ROWS, self._vocab_size)) for first in range(0, self._vocab_size, ROWS)]
        return torch.cat([torch.from_numpy(self.embed(ids)).to(self._device, self._model.dtype) for ids in pieces])

    def _grow(self, chunks: Sequence[Chunk[PagedSlot]]) -> None:
        cleared, copied = [], []
        for chunk in chunks:
            changes = self._table.grow(chunk.slot, chunk.slot.length + len(chunk.inputs))
            cleared += changes.cleared
            copied += changes.copied
        if cleared:
            self._pool.clear(cleared)
        if copied:
            self._pool.copy(copied)

    def _run(self, chunks: Sequence[Chunk[PagedSlot]], embeds: Sequence[F32]) -> list[F32]:
        logits = [np.empty((0, self._vocab_size), np.float32)] * len(chunks)
        steps = [i for i, chunk in enumerate(chunks) if _is_step(chunk)]
        for first in range(0, len(steps), BATCHES[-1]):
            batch = steps[first : first + BATCHES[-1]]
            tokens = [int(chunks[i].inputs[0]) for i in batch]
            rows, likeliest = self._steps.run([chunks[i].slot for i in batch], tokens)
            for wanted, found in ((False, rows), (True, likeliest)):  # only what is asked for leaves the device
                asked = [(place, i) for place, i in enumerate(batch) if chunks[i].likeliest == wanted]
                for (_, i), row in zip(asked, _on_host(found, [place for place, _ in asked]), strict=True):
                    logits[i] = row[None]
        for i, (chunk, new) in enumerate(zip(chunks, embeds, strict=True)):
            if not _is_step(chunk):
                (logits[i],) = answered([chunk], [self._append(chunk, new)])
        return logits

    def _append(self, chunk: Chunk[PagedSlot], embeds: F32) -> F32:
        """One slot's new positions [n, dim], in pieces: logits [wanted, V]."""
        slot, found = chunk.slot, []
        for first in range(0, len(embeds), PIECE):
            piece = embeds[first : first + PIECE]
            ahead = PagedSlot(slot.capacity, slot.length + first, slot.pages)
            x = torch.from_numpy(np.ascontiguousarray(piece)).to(self._device)[None]
            places = places_of(ahead, len(piece), self._device)
            states = self._model.states(x, self._pool, places, self._attention)[0]
            wanted = max(0, first + len(piece) - (len(embeds) - chunk.wanted))
            if wanted:
                found.append(self._model.logits(states[-wanted:]))
        if not found:
            return np.empty((0, self._vocab_size), np.float32)
        logits: Tensor = torch.cat(found)
        return np.asarray(logits.cpu().numpy())

    @contextmanager
    def _own_threads(self) -> Iterator[None]:
        """PyTorch has one number of threads for the whole process, which is not ours alone."""
        before = torch.get_num_threads()
        if self._device.type != "cpu" or before == self._threads:
            yield
            return
        torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _give_back(self, slots: Sequence[PagedSlot]) -> None:
        with self._round:
            for slot in slots:
                self._table.close(slot)
            self._budget.give_back(sum(PAGE * pages_of(slot.capacity) for slot in slots))


def _on_host(rows: Tensor, places: list[int]) -> F32:
    """Some rows, copied: all of them at once, where it is all."""
    if not places:
        return np.empty((0, rows.shape[1]), np.float32)
    chosen = rows if len(places) == len(rows) else rows[places]
    return np.array(chosen.cpu().numpy())


def _is_step(chunk: Chunk[PagedSlot]) -> bool:
    return not isinstance(chunk.inputs, np.ndarray) and len(chunk.inputs) == chunk.wanted == 1


def _choose_layers(kernels: Kernels, model: TorchModel, attention: Attention) -> StepLayers:
    if kernels == "torch":
        return torch_layers(model, attention)
    if kernels != "triton":
        raise ConfigError(f"kernels is {kernels!r}; expected 'torch' or 'triton'")
    try:
        from salmonrun.runtime.decoders.torch_decoder.triton_layers import triton_layers
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise MissingExtraError(
            "kernels is 'triton', and Triton is not installed: pip install 'salmonrun[triton]'"
        ) from error
    return triton_layers(model)


def _activations(llm: LlmSpec, device: torch.device) -> torch.dtype:
    """What is computed in: float32 on a CPU and with weights of it, else half precision, float16 if they have that."""
    weights = llm.weights.torch
    if device.type == "cpu" or weights is None or weights.precision == "fp32":
        return torch.float32
    return torch.float16 if weights.precision == "fp16" else torch.bfloat16


def _pool_pages(bundle: Bundle, page: int, device: torch.device, limits: Limits | None) -> int:
    """Pages of the pool, of so many bytes each, as the limits say."""
    if limits and limits.max_cache_mib is not None:
        return max(1, limits.max_cache_mib * 2**20 // page)
    pages = SEQUENCES * pages_of(bundle.manifest.llm.max_length)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        share = session_limit(bundle, "llm", limits)
        left = free if share is None else min(free, share - weights_on_gpu(bundle)["llm"])
        pages = max(1, min(pages, int(SHARE * left) // page))
    return pages
