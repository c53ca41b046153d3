"""The points of the curve: what is left out of which part, and how."""

from collections.abc import Sequence
from dataclasses import dataclass

from salmonrun.training.model.config import ModelConfig
from salmonrun.training.pruning.layers import Part, count_layers

PROTECTED = 2  # the first and the last layer of each part stay
TITLES: dict[Part, str] = {"llm": "LLM", "whisper": "Whisper"}
WHOLE = "whole"


@dataclass(frozen=True)
class Point:
    """A way to make a model smaller."""

    name: str  # in tables, pictures and folders
    options: tuple[str, ...] = ()  # of `salmonrun prune apply`; none: the whole model, which is trained on as well


def points_of(config: ModelConfig, shares: Sequence[float]) -> list[Point]:
    """The whole model, and each share of the layers of LLM, Whisper and both, as far as there are so many.

    Shares that come to the same number of layers are one point. Whisper of low rank keeps as large a share of the
    weights of its matrices as a Whisper with so many layers fewer would.
    """
    points = [Point(WHOLE)]
    counts: dict[Part, list[int]] = {part: _counts(count_layers(config, part), shares) for part in TITLES}
    for part, title in TITLES.items():
        layers = count_layers(config, part)
        for count in counts[part]:
            share = ("--" + part, f"{count / layers:.4f}")
            points += [Point(f"{title} -{count}", share), Point(f"{title} -{count} merged", (*share, "--merge"))]
    for llm, whisper in zip(counts["llm"], _stretched(counts["whisper"], len(counts["llm"])), strict=False):
        shares_of = (llm / count_layers(config, "llm"), whisper / count_layers(config, "whisper"))
        options = ("--llm", f"{shares_of[0]:.4f}", "--whisper", f"{shares_of[1]:.4f}")
        points.append(Point(f"LLM -{llm}, Whisper -{whisper}", options))
    layers = count_layers(config, "whisper")
    for count in counts["whisper"]:
        kept = 1 - count / layers
        points.append(Point(f"Whisper rank {kept:.0%}", ("--low-rank", f"whisper={kept:.4f}")))
    return points


def _counts(layers: int, shares: Sequence[float]) -> list[int]:
    return sorted({count for share in shares if 0 < (count := round(share * layers)) <= layers - PROTECTED})


def _stretched(counts: list[int], length: int) -> list[int]:
    """As many as another part has, the last one repeated."""
    return [counts[min(i, len(counts) - 1)] for i in range(length)] if counts else []
