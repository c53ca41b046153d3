"""A language model without a network: logits are a function of the tokens so far, which real KV slots hold."""

from collections.abc import Callable, Sequence

import numpy as np

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.decoder import Chunk, DecoderReport, Lease, answered, begin, check_capacity
from salmonrun.runtime.decoders.kv_cache import KVPool, Slot
from salmonrun.runtime.errors import CapacityError

NextLogits = Callable[[tuple[int, ...]], F32]  # all tokens of a sequence, the prompt's too -> [V]


class FakeDecoder:
    """Satisfies `Decoder`. A token's embedding is its id, and so is the key its slot keeps."""

    def __init__(self, next_logits: NextLogits, max_length: int = 1000) -> None:
        self.max_length = max_length
        self.rounds: list[list[Chunk[Slot]]] = []
        self.copied: list[int] = []  # positions each fork really copied
        self._pool = KVPool(1, 1, 1, np.float32, max_length)
        self._next_logits = next_logits

    def embed(self, token_ids: Sequence[int], /) -> F32:
        return np.array(token_ids, np.float32).reshape(-1, 1)

    def open(self, count: int, capacity: int) -> Lease[Slot]:
        check_capacity(self.max_length, capacity)
        return self._pool.lease(count, capacity)

    def forward(self, chunks: Sequence[Chunk[Slot]]) -> list[F32]:
        assert len({id(chunk.slot) for chunk in chunks}) == len(chunks)
        self.rounds.append(list(chunks))
        for chunk in chunks:
            chunk.slot.check_open()
        begin(self, chunks)
        for chunk in chunks:
            if chunk.slot.room < len(chunk.inputs):
                raise CapacityError(f"{len(chunk.inputs)} positions do not fit")
        return answered(chunks, [self._append(chunk) for chunk in chunks])

    def length(self, slot: Slot) -> int:
        return slot.length

    def truncate(self, slot: Slot, length: int) -> None:
        slot.truncate(length)

    def fork(self, source: Slot, target: Slot, length: int) -> None:
        self.copied.append(target.copy_from(source, length))

    def describe(self) -> DecoderReport:
        return DecoderReport("fake", "cpu", (), 1)

    def history(self, slot: Slot) -> tuple[int, ...]:
        """All tokens that a slot holds."""
        return tuple(int(key) for key in slot.cache.keys[0][slot.row, 0, : slot.length, 0])

    def _append(self, chunk: Chunk[Slot]) -> F32:
        slot, embeds = chunk.slot, np.asarray(chunk.inputs, np.float32).reshape(-1)
        end = slot.length + len(embeds)
        slot.cache.keys[0][slot.row, 0, slot.length : end, 0] = embeds
        slot.length = end
        history = self.history(slot)
        logits = [self._next_logits(history[: i + 1]) for i in range(end - chunk.wanted, end)]
        return np.stack(logits) if logits else np.zeros((0, 0), np.float32)


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
