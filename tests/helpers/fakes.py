"""A language model without a network: logits are a function of the tokens so far, which real KV slots hold."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from salmonrun.runtime.decoder import F32
from salmonrun.runtime.decoders.kv_cache import KVCache, Slot
from salmonrun.runtime.errors import CapacityError

NextLogits = Callable[[tuple[int, ...]], F32]  # all tokens of a sequence, the prompt's too -> [V]


class FakeDecoder:
    """Satisfies `Decoder`. A token's embedding is its id, and so is the key its slot keeps."""

    def __init__(self, next_logits: NextLogits, max_length: int = 1000) -> None:
        self.max_length = max_length
        self.calls: list[str] = []  # prefill, step, verify, truncate, fork, in order
        self.copied: list[int] = []  # positions each fork really copied
        self._next_logits = next_logits

    def embed(self, token_ids: Sequence[int]) -> F32:
        return np.array(token_ids, np.float32).reshape(-1, 1)

    @contextmanager
    def open(self, count: int, capacity: int) -> Iterator[list[Slot]]:
        if capacity > self.max_length:
            raise CapacityError(f"{capacity} positions exceed {self.max_length}")
        yield KVCache(1, count, 1, capacity, 1, np.float32).slots

    def length(self, slot: Slot) -> int:
        return slot.length

    def prefill(self, slot: Slot, inputs_embeds: F32) -> F32:
        self.calls.append("prefill")
        return self._append(slot, inputs_embeds)[-1]

    def step(self, slots: Sequence[Slot], token_ids: Sequence[int]) -> F32:
        self.calls.append("step")
        return np.concatenate([self._append(slot, self.embed([i])) for slot, i in zip(slots, token_ids, strict=True)])

    def verify(self, slot: Slot, token_ids: Sequence[int], last: int | None = None) -> F32:
        self.calls.append("verify")
        return self._append(slot, self.embed(token_ids))[-(last or len(token_ids)) :]

    def truncate(self, slot: Slot, length: int) -> None:
        self.calls.append("truncate")
        slot.truncate(length)

    def fork(self, source: Slot, target: Slot, length: int) -> None:
        self.calls.append("fork")
        self.copied.append(target.copy_from(source, length))

    def _append(self, slot: Slot, embeds: F32) -> F32:
        """Logits after each of the new positions: [S, V]."""
        start, end = slot.length, slot.length + len(embeds)
        if end > slot.cache.capacity:
            raise CapacityError(f"{end} positions exceed the {slot.cache.capacity} reserved")
        slot.cache.keys[0][slot.row, 0, start:end] = embeds
        slot.length = end
        history = tuple(int(key) for key in slot.cache.keys[0][slot.row, 0, :end, 0])
        return np.stack([self._next_logits(history[: i + 1]) for i in range(start, end)])


def random_logits(vocab_size: int, seed: int, spread: float = 3.0) -> NextLogits:
    """Normal logits, drawn anew for each history."""

    def next_logits(history: tuple[int, ...]) -> F32:
        return np.random.default_rng([seed, *history]).normal(0, spread, vocab_size).astype(np.float32)

    return next_logits


def scripted(tokens: Sequence[int], vocab_size: int, prompt: int) -> NextLogits:
    """Logits whose best tokens, after `prompt` positions, are `tokens` one after the other."""

    def next_logits(history: tuple[int, ...]) -> F32:
        logits = np.zeros(vocab_size, np.float32)
        if prompt <= len(history) < prompt + len(tokens):
            logits[tokens[len(history) - prompt]] = 10.0
        return logits

    return next_logits
