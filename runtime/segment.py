"""A part of a long recording, with its text and its place."""

from dataclasses import dataclass
from typing import Any

from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.search import FinishReason

BETWEEN_UTTERANCES = "\n"  # texts, in that of a whole recording or stream


@dataclass(frozen=True)
class Segment:
    """What is said in a part of a recording or stream. Segments do not overlap."""

    text: str
    token_ids: list[int]
    start_sample: int  # at 16 kHz
    end_sample: int  # after the last
    window: tuple[int, int]  # samples the model heard for this: more than start to end where windows overlap, or
    # where a block was encoded with silence behind the end
    finish_reason: FinishReason
    notes: tuple[str, ...] = ()  # what to know of this answer: cut short, degenerate, not aligned with the one before
    # Mean log probability of the answer's tokens: all of them, also the stop token and those a neighbour has.
    score: float | None = None
    low_confidence: bool | None = None  # whether that is below the bundle's threshold; None: it has none, or no score

    @property
    def start(self) -> float:
        """Seconds from the beginning."""
        return self.start_sample / SAMPLE_RATE

    @property
    def end(self) -> float:
        """Seconds from the beginning."""
        return self.end_sample / SAMPLE_RATE

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"start": self.start, "end": self.end, **vars(self)}
