"""The decoder on ONNX Runtime: one graph for prefill, step and verify, KV buffers updated in place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from salmonrun.runtime.bundle import Bundle, EmbeddingSpec
from salmonrun.runtime.decoders.kv_cache import KVCache, Slot, contiguous_runs
from salmonrun.runtime.errors import CapacityError
from salmonrun.runtime.session import Device, Graph, load_graph

F32 = npt.NDArray[np.float32]


class EmbeddingTable:
    """Token embeddings gathered from a memory map, outside the graph."""

    def __init__(self, bundle: Bundle, spec: EmbeddingSpec) -> None:
        stored: Any = np.uint16 if spec.dtype == "bfloat16" else np.dtype(spec.dtype)
        self._rows = np.memmap(bundle.path(spec.file), stored, mode="r", shape=(spec.rows, spec.dim))
        self._bfloat16 = spec.dtype == "bfloat16"

    def __call__(self, token_ids: Sequence[int]) -> F32:
        """[len(token_ids), dim] in float32."""
        rows = self._rows[np.asarray(token_ids, np.int64)]
        if self._bfloat16:  # the upper half of a float32
            return np.asarray((rows.astype(np.uint32) << 16).view(np.float32))
        return np.asarray(rows, np.float32)


class OnnxDecoder:
    """Satisfies `Decoder`. Slots of different callers may be used from different threads at once."""

    name = "onnx"

    def __init__(self, bundle: Bundle, device: Device, threads: int) -> None:
        self._spec = bundle.manifest.llm
        self._dtype: Any = np.dtype(self._spec.dtype)
        self.graph: Graph = load_graph(bundle, "llm", device, threads)
        self.embed = EmbeddingTable(bundle, self._spec.embedding)

    @property
    def max_length(self) -> int:
        """Positions a slot can have at most."""
        return self._spec.max_length

    @contextmanager
    def open(self, count: int, capacity: int) -> Iterator[list[Slot]]:
        """`count` neighbouring empty slots; their memory is freed when the context ends."""
        self.check_capacity(capacity)
        spec = self._spec
        cache = KVCache(spec.layers, count, spec.kv_heads, capacity, spec.head_dim, self._dtype)
        try:
            yield cache.slots
        finally:
            cache.release()

    def check_capacity(self, positions: int) -> None:
        """Refuse what no slot can hold.

        Raises:
            CapacityError: more than `max_length` positions.
        """
        if positions > self.max_length:
            raise CapacityError(
                f"prompt and answer need {positions} positions, the KV cache has {self.max_length}: shorten the "
                "prompt, lower max_new_tokens, or export with a larger --max-length"
            )

    def length(self, slot: Slot) -> int:
        """Positions the slot has."""
        return slot.length

    def prefill(self, slot: Slot, inputs_embeds: F32) -> F32:
        """Append [S, dim]; logits of the last position [V]."""
        logits: F32 = self._append(slot, inputs_embeds, [len(inputs_embeds) - 1])[0]
        return logits

    def verify(self, slot: Slot, token_ids: Sequence[int], last: int | None = None) -> F32:
        """Append k tokens; the logits after each [k, V], or after the `last` of them alone."""
        count = len(token_ids)
        return self._append(slot, self.embed(token_ids), list(range(count - (last or count), count)))

    def step(self, slots: Sequence[Slot], token_ids: Sequence[int]) -> F32:
        """Append one token to each slot: [B, V]. Neighbouring slots run as one batch."""
        if len(set(map(id, slots))) != len(slots):
            raise ValueError("a slot may occur once in a step; append several tokens to it with verify")
        for slot in slots:  # all or none: a full slot must not leave others a token ahead
            self._check_room(slot, 1)
        embeds = self.embed(token_ids)
        logits = np.empty((len(slots), self._spec.vocab_size), np.float32)
        for cache, first, end, members in contiguous_runs(list(slots)):
            logits[members] = self._run(cache, first, end, embeds[members][:, None], [0])[:, 0]
        return logits

    def truncate(self, slot: Slot, length: int) -> None:
        """Forget the positions from `length` on."""
        slot.truncate(length)

    def fork(self, source: Slot, target: Slot, length: int) -> None:
        """Make `target` a copy of the first `length` positions of `source`."""
        target.copy_from(source, length)

    @staticmethod
    def _check_room(slot: Slot, added: int) -> None:
        if slot.room < added:
            raise CapacityError(
                f"{slot.length} + {added} positions exceed the {slot.cache.capacity} reserved for this request"
            )

    def _append(self, slot: Slot, embeds: F32, wanted: list[int]) -> F32:
        if not len(embeds):
            raise ValueError("nothing to append: at least one position is needed")
        self._check_room(slot, len(embeds))
        logits: F32 = self._run(slot.cache, slot.row, slot.row + 1, embeds[None], wanted)[0]
        return logits

    def _run(self, cache: KVCache, first: int, end: int, embeds: F32, wanted: list[int]) -> F32:
        """Run rows first..end of a cache on embeds [rows, S, dim]; logits [rows, len(wanted), V]."""
        slots = cache.slots[first:end]
        added = embeds.shape[1]
        lengths = np.array([slot.length + added for slot in slots], np.int32)
        logits = np.empty((len(slots), len(wanted), self._spec.vocab_size), np.float32)
        binding = self.graph.session.io_binding()
        self._bind(binding, "inputs_embeds", embeds.astype(self._dtype))
        self._bind(binding, "seqlens_k", lengths - 1)
        self._bind(binding, "total_sequence_length", lengths.max())
        self._bind(binding, "logit_positions", np.array(wanted, np.int64))
        for layer, buffers in enumerate(zip(cache.keys, cache.values, strict=True)):
            for kind, buffer in zip(("key", "value"), buffers, strict=True):
                rows = onnxruntime.OrtValue.ortvalue_from_numpy(buffer[first:end])
                binding.bind_ortvalue_input(f"past_{kind}.{layer}", rows)
                binding.bind_ortvalue_output(f"present_{kind}.{layer}", rows)
        binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(logits))
        self.graph.session.run_with_iobinding(binding)
        for slot in slots:
            slot.length += added
        return logits

    @staticmethod
    def _bind(binding: onnxruntime.IOBinding, name: str, array: npt.NDArray[Any]) -> None:
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
