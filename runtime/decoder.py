"""The decoder seam: what the rest of the engine needs of a language model, whatever runs it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, TypeVar

import numpy as np

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.errors import CapacityError
from salmonrun.runtime.logits import log_probability

S = TypeVar("S")  # a decoder's own handle of one sequence


@dataclass(frozen=True, eq=False)
class Chunk(Generic[S]):
    """What a round appends to one slot."""

    slot: S
    inputs: F32 | Sequence[int]  # embeddings [n, dim], or n token ids; at least one
    wanted: int = 1  # logits of so many last positions; 0: append only, which saves the output layer
    # Positions the slot begins with; None: all it has. Fewer: those behind are forgotten.
    keep: int | None = None
    source: S | None = None  # the slot whose first `keep` positions these are, copied before; None: its own
    # In place of the logits [wanted, V], the likeliest tokens and their log probabilities [wanted, 2], as `likeliest`
    # finds them: a decoder on another device need not bring the logits here.
    likeliest: bool = False


class Lease(Generic[S]):
    """Slots that belong to one request until they are given back: at any time, or at the end of a `with`."""

    def __init__(self, slots: Sequence[S], give_back: Callable[[Sequence[S]], None]) -> None:
        self.slots = tuple(slots)
        self._pending = [give_back]

    @property
    def closed(self) -> bool:
        """Whether the slots are somebody else's."""
        return not self._pending

    def close(self) -> None:
        """Give the slots back; a second time does nothing, also if two threads do it at once."""
        try:
            give_back = self._pending.pop()
        except IndexError:
            return
        give_back(self.slots)

    def __enter__(self) -> tuple[S, ...]:
        return self.slots

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class DecoderReport:
    """What really runs the LLM."""

    name: str
    device: str  # "cpu", "cuda" or, of several GPUs, "cuda:1"
    providers: tuple[str, ...]  # of ONNX Runtime, first choice first; empty elsewhere
    threads: int
    cache_bytes: int = 0  # reserved for keys and values, now
    cache_usage: float = 0.0  # share of `Limits.max_cache_mib` that is promised; 0 without that limit
    instruction_set: str | None = None  # of the native decoder's kernels, chosen at run time
    weights: Path | None = None  # the file that is mapped, of the native decoder; None: another, or none is
    # Of the torch decoder: its version, what attention and products are computed by and in, how steps are launched.
    kernels: dict[str, str] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()  # operators that are not computed on the GPU it runs on


class Decoder(Protocol[S]):
    """A language model with slots: sequences whose keys and values it keeps."""

    @property
    def max_length(self) -> int:
        """Positions a slot can have at most."""
        ...

    def embed(self, token_ids: Sequence[int], /) -> F32:
        """Embeddings of tokens: [len(token_ids), dim]."""
        ...

    def open(self, count: int, capacity: int) -> Lease[S]:
        """`count` empty slots with room for `capacity` positions each.

        Raises:
            BusyError: with those that are open, they might take more memory than `Limits.max_cache_mib` allows.
            CapacityError: they might take more than that alone, or `capacity` is more than `max_length`.
        """
        ...

    def forward(self, chunks: Sequence[Chunk[S]]) -> list[F32]:
        """One round: every chunk is appended to its slot; the logits [wanted, V] of each, or its likeliest tokens.

        First each slot gets the beginning its chunk says, then all are appended: a slot may be the source of others. A
        round that fails has changed no slot's length but by those beginnings.

        Raises:
            CapacityError: a slot has no room for its chunk.
            ClosedError: a slot was given back.
        """
        ...

    def length(self, slot: S) -> int:
        """Positions the slot has."""
        ...

    def truncate(self, slot: S, length: int) -> None:
        """Forget the positions from `length` on."""
        ...

    def fork(self, source: S, target: S, length: int) -> None:
        """Make `target` a copy of the first `length` positions of `source`."""
        ...

    def describe(self) -> DecoderReport:
        """What really runs, read from what is loaded."""
        ...


def check_capacity(max_length: int, positions: int) -> None:
    """Refuse what no slot can hold.

    Raises:
        CapacityError: more than `max_length` positions.
    """
    if positions > max_length:
        raise CapacityError(
            f"prompt and answer need {positions} positions, the KV cache has {max_length}: shorten the "
            "prompt, lower max_new_tokens, or export with a larger --max-length"
        )


def check_room(length: int, added: int, capacity: int) -> None:
    """Refuse a chunk that its slot cannot hold.

    Raises:
        CapacityError: more than `capacity` positions.
    """
    if length + added > capacity:
        raise CapacityError(f"{length} + {added} positions exceed the {capacity} reserved for this request")


def inputs_of(decoder: Decoder[S], chunks: Sequence[Chunk[S]]) -> list[F32]:
    """The embeddings [n, dim] of each chunk, and a check of them: how every decoder's `forward` begins.

    Raises:
        ValueError: a slot occurs twice, or a chunk has no positions or fewer than logits are wanted of.
    """
    if len({id(chunk.slot) for chunk in chunks}) != len(chunks):
        raise ValueError("a slot may occur once in a round; append several positions to it with one chunk")
    embeds = []
    for chunk in chunks:
        new = chunk.inputs if isinstance(chunk.inputs, np.ndarray) else decoder.embed(chunk.inputs)
        if not 0 <= chunk.wanted <= len(new) or not len(new):
            raise ValueError(f"{chunk.wanted} logits are wanted of {len(new)} positions; at least one is needed")
        embeds.append(new)
    return embeds


def answered(chunks: Sequence[Chunk[S]], logits: Sequence[F32]) -> list[F32]:
    """What each chunk is answered with, of the logits [wanted, V] of each."""
    return [likeliest(rows) if chunk.likeliest else rows for chunk, rows in zip(chunks, logits, strict=True)]


def likeliest(logits: F32) -> F32:
    """The likeliest token of each row of logits [n, V], the first of equals, and its log probability: [n, 2].

    Where a logit of a row is not finite, the log probability is NaN, so that whoever gets it alone sees that.
    """
    tokens = logits.argmax(axis=1).tolist() if len(logits) else []
    assert logits.shape[1] <= 2**24, "float32 has no more whole numbers without gaps"
    found = [
        (token, log_probability(row, token) if np.isfinite(row).all() else np.nan)
        for token, row in zip(tokens, logits, strict=True)
    ]
    return np.array(found, np.float32).reshape(-1, 2)


def begin(decoder: Decoder[S], chunks: Sequence[Chunk[S]]) -> None:
    """Give each chunk's slot the beginning that the chunk says, before any is appended."""
    for chunk in chunks:
        if chunk.keep is None:
            continue
        if chunk.source is None:
            decoder.truncate(chunk.slot, chunk.keep)
        else:
            decoder.fork(chunk.source, chunk.slot, chunk.keep)


def prefill(decoder: Decoder[S], slot: S, inputs_embeds: F32) -> F32:
    """Append embeddings [P, dim]; the logits of the last position [V]."""
    logits: F32 = decoder.forward([Chunk(slot, inputs_embeds)])[0][0]
    return logits


def step(decoder: Decoder[S], slots: Sequence[S], token_ids: Sequence[int]) -> F32:
    """Append one token to each of B slots, of any lengths: [B, V]."""
    chunks = [Chunk(slot, [token_id]) for slot, token_id in zip(slots, token_ids, strict=True)]
    return np.concatenate(decoder.forward(chunks))


def verify(decoder: Decoder[S], slot: S, token_ids: Sequence[int]) -> F32:
    """Append k tokens to one slot; the logits after each [k, V]."""
    return decoder.forward([Chunk(slot, token_ids, wanted=len(token_ids))])[0]
