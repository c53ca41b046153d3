"""What a score is worth: how often answers of a score are right, and what a threshold would reject."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.picture import load_figure
from salmonrun.training.evaluation.answers import Answered

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 10  # of as many answers each, at most
LEAST_OF_A_BIN = 5
Scores = npt.NDArray[np.float64]


class Bin(NamedTuple):
    """Neighbours by score."""

    probability: float  # mean of exp(score): the geometric mean probability of a token, averaged over the answers
    right: float  # share of exact answers
    answers: int


def rejection_scores(rows: Sequence[Answered], nothing: str) -> list[float]:
    """What thresholds reject answers by; one that says that there is nothing to be transcribed is rejected by any."""
    refused = [nothing != "" and row.hypothesis == nothing for row in rows]
    return [-math.inf if no else row.score for row, no in zip(rows, refused, strict=True) if row.score is not None]


def reliability(scores: Sequence[float], exact: Sequence[bool]) -> list[Bin]:
    """Answers by score, in bins of as many each, ascending."""
    order = np.argsort(scores, kind="stable")
    parts = np.array_split(order, min(BINS, max(1, len(order) // LEAST_OF_A_BIN)))
    probabilities, right = np.exp(scores), np.array(exact, np.float64)
    return [Bin(float(probabilities[part].mean()), float(right[part].mean()), len(part)) for part in parts]


def rejection_curve(speech: Sequence[float], other: Sequence[float]) -> tuple[Scores, Scores]:
    """At every threshold, ascending: the share of `speech` it rejects falsely, and of `other` rightly."""
    thresholds = np.append(np.unique([*speech, *other]), np.inf)

    def rejected(scores: Sequence[float]) -> Scores:
        return np.asarray(np.searchsorted(np.sort(scores), thresholds) / len(scores))

    return rejected(speech), rejected(other)


def draw_reliability(
    file: str | Path,
    scores: Sequence[float],
    exact: Sequence[bool],
    speech: Sequence[float] = (),
    other: Sequence[float] = (),
    threshold: float | None = None,
) -> None:
    """Draw both into one PNG; the curve if there are `other` recordings, those out of the model's domain.

    Args:
        file: the PNG.
        scores: of the answers.
        exact: whether each is right.
        speech: the `rejection_scores` of the same answers.
        other: those of the answers to recordings out of domain.
        threshold: the bundle's.

    Raises:
        ConfigError: there is no answer with a score.
        MissingExtraError: matplotlib is not installed.
    """
    figure_class = load_figure("--reliability")
    if not scores:
        raise ConfigError("no answer has a score: there is no reliability to draw")
    figure = figure_class(figsize=(6 * (1 + bool(other)), 5), layout="constrained")
    panels = figure.subplots(1, 1 + bool(other), squeeze=False)[0]
    _draw_bins(panels[0], reliability(scores, exact), threshold)
    if other:
        _draw_curve(panels[1], speech, other, threshold)
    figure.savefig(file, dpi=120, format="png")


def _draw_bins(axes: "Axes", bins: Sequence[Bin], threshold: float | None) -> None:
    axes.plot([0, 1], [0, 1], color="lightgrey", label="as sure as right")
    axes.plot([one.probability for one in bins], [one.right for one in bins], marker="o", label="answers")
    if threshold is not None:
        axes.axvline(np.exp(threshold), color="tab:red", linestyle="--", label="the bundle's threshold")
    axes.set(xlabel="mean probability of a token, exp(score)", ylabel="share of exact answers", ylim=(0, 1))
    axes.set_title(f"{sum(one.answers for one in bins)} answers in {len(bins)} bins")
    axes.legend(fontsize=8)


def _draw_curve(axes: "Axes", speech: Sequence[float], other: Sequence[float], threshold: float | None) -> None:
    axes.plot(*rejection_curve(speech, other), drawstyle="steps-post")
    if threshold is not None:
        shares = [float(np.mean(np.array(scores) < threshold)) for scores in (speech, other)]
        axes.plot(*([share] for share in shares), marker="o", color="tab:red", label="the bundle's threshold")
        axes.legend(fontsize=8)
    axes.set(xlabel="false rejection: share of the annotation", ylabel="true rejection: share of those out of domain")
    axes.set_title(f"{len(speech)} answers against {len(other)}")
