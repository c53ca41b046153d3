"""The decoder seam: what search needs of a language model, whatever runs it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
S = TypeVar("S")  # a decoder's own handle of one sequence


class Decoder(Protocol[S]):
    """A language model with slots: sequences whose keys and values it keeps."""

    @property
    def max_length(self) -> int:
        """Positions a slot can have at most."""
        ...

    def embed(self, token_ids: Sequence[int]) -> F32:
        """Embeddings of tokens: [len(token_ids), dim]."""
        ...

    def open(self, count: int, capacity: int) -> AbstractContextManager[list[S]]:
        """`count` empty slots with room for `capacity` positions each, freed when the context ends.

        Raises:
            CapacityError: `capacity` is more than `max_length`.
        """
        ...

    def length(self, slot: S) -> int:
        """Positions the slot has."""
        ...

    def prefill(self, slot: S, inputs_embeds: F32) -> F32:
        """Append embeddings [S, dim] to the slot; logits of the last position [V]."""
        ...

    def step(self, slots: Sequence[S], token_ids: Sequence[int]) -> F32:
        """Append one token to each of B slots, of any lengths: [B, V]."""
        ...

    def verify(self, slot: S, token_ids: Sequence[int], last: int | None = None) -> F32:
        """Append k tokens to one slot; the logits after each [k, V], or after the `last` of them alone."""
        ...

    def truncate(self, slot: S, length: int) -> None:
        """Forget the positions from `length` on."""
        ...

    def fork(self, source: S, target: S, length: int) -> None:
        """Make `target` a copy of the first `length` positions of `source`."""
        ...
