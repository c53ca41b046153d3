"""Who takes part in the next round: steps first, then pieces of prompts, each in a fair order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from salmonrun.runtime.running import PIECE, Running

S = TypeVar("S")

STEPS = 128  # positions of a round for searches that are in the middle of an answer
PROMPTS = PIECE  # and for prompts, so that a long one does not make the others wait for more than this
PATIENCE = 16  # rounds that others may come first by their priority


@dataclass(frozen=True)
class Round:
    """What a round did."""

    searches: int  # that took part
    steps: int  # positions, of answers
    prompts: int  # positions, of prompts

    @property
    def positions(self) -> int:
        """All that were appended."""
        return self.steps + self.prompts


def plan(searches: Sequence[Running[S]], number: int) -> list[Running[S]]:
    """Those of some searches that take part in the round of this number.

    By priority, and among equals who has waited longest; who has waited for `PATIENCE` rounds, before all others. So of
    n searches none waits for more than PATIENCE + n rounds.
    """
    waiting = [search for search in searches if not search.done]
    if len(waiting) < 2:
        return waiting
    waiting.sort(key=lambda search: _rank(search, number))
    steps = _fitting([search for search in waiting if search.is_step], STEPS)
    return steps + _fitting([search for search in waiting if not search.is_step], PROMPTS)


def size(search: Running[S]) -> int:
    """Positions that its share of a round has."""
    return len(search.share()) if search.is_step else sum(len(chunk.inputs) for chunk in search.share())


def _rank(search: Running[S], number: int) -> tuple[bool, int, int]:
    patient = number - search.served < PATIENCE
    return patient, search.terms.priority if patient else 0, search.served


def _fitting(ordered: Sequence[Running[S]], room: int) -> list[Running[S]]:
    """The first, whatever it needs, and all behind it that there is room for."""
    taken: list[Running[S]] = []
    for search in ordered:
        needed = size(search)
        if needed <= room or not taken:
            taken.append(search)
            room -= needed
    return taken
