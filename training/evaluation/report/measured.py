"""What was found of models on the same recordings, and how they compare."""

from collections.abc import Sequence
from dataclasses import dataclass

from salmonrun.training.evaluation.report.cost import Cost
from salmonrun.training.evaluation.scores import TaskScore, word_error_rate

MIB = 2**20


@dataclass(frozen=True)
class Quality:
    """Of the answers to one task."""

    entries: int
    wer: float  # after Whisper's English normalizer
    wer_spelled: float  # with digits as words instead
    exact: float
    repeated: int
    cider_d: float | None = None  # of captions
    spider: float | None = None  # where aac-metrics is installed

    @classmethod
    def of(cls, score: TaskScore) -> "Quality":
        """What a report keeps of a task's scores."""
        captions = score.captions
        return cls(
            score.entries,
            score.wer,
            score.wer_spelled,
            score.exact,
            score.repeated,
            captions.cider_d if captions else None,
            captions.spider if captions else None,
        )

    @property
    def measure(self) -> str:
        """By which the task is judged: captions by SPIDEr or else CIDEr-D, all others by word errors."""
        if self.cider_d is None:
            return "WER"
        return "CIDEr-D" if self.spider is None else "SPIDEr"

    @property
    def value(self) -> float:
        """In that measure."""
        return {"WER": self.wer, "CIDEr-D": self.cider_d or 0.0, "SPIDEr": self.spider or 0.0}[self.measure]


@dataclass(frozen=True)
class Measured:
    """A model, what it takes, and what it answers."""

    name: str
    kind: str  # bundle or checkpoint
    sha256: str
    size_bytes: int
    cost: Cost
    quality: dict[str, Quality]  # by task
    answers: tuple[str, ...]  # to all entries, in their order
    took_s: float  # to measure it

    @property
    def latency_ms(self) -> float:
        """First token and one more."""
        return 1e3 * self.cost.latency_s

    @property
    def peak_mb(self) -> float:
        """Of the GPU where it runs on one, else resident."""
        return self.cost.peak_mb if self.cost.device_mb is None else self.cost.device_mb

    @property
    def size_mb(self) -> float:
        """Of its files, in MiB."""
        return self.size_bytes / MIB


def agreement(baseline: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """Share of the tokens of the baseline's answers that another's have, too: 1 - edit distance / tokens, at least 0.

    Args:
        baseline: the token ids of each of its answers.
        other: those of the other's, by the same tokenizer.
    """
    words = [(_words(ours), _words(theirs)) for ours, theirs in zip(baseline, other, strict=True)]
    return max(0.0, 1 - word_error_rate(words))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, quality) that no other has at least the quality of for at most the cost, by cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front


def _words(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))
