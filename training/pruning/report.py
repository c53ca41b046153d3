"""What was measured of a model's layers, as a table and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from salmonrun.runtime.picture import load_figure
from salmonrun.training.pruning.sensitivity import CRITERIA, PartSensitivity, Sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "sensitivity.png"


def format_sensitivity(sensitivity: Sensitivity) -> str:
    """A table for each part, and what each criterion would leave out first."""
    lines = [
        f"{sensitivity.recordings} recordings, {sensitivity.tokens} tokens; the whole model: "
        f"loss {sensitivity.loss:.4f}, perplexity {sensitivity.perplexity:.4g}"
    ]
    for name, part in sensitivity.parts.items():
        lines += ["", name, f"{'layer':>5}" + "".join(f"{criterion:>12}" for criterion in CRITERIA)]
        for layer, values in enumerate(zip(*(part.of(criterion) for criterion in CRITERIA), strict=True)):
            lines.append(f"{layer:5}" + "".join(f"{value:12.4g}" for value in values))
        lines += [f"least needed by {criterion}: {_order(part.of(criterion))}" for criterion in CRITERIA]
        runs = range(2, len(part.loss) // 2 + 1)
        lines += [f"least needed {n} side by side, by angular: {_run(part, n)}" for n in runs]
    return "\n".join(lines)


def draw_sensitivity(sensitivity: Sensitivity, file: str | Path) -> None:
    """The loss by the layer that is left out, a panel for each part, as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure_class = load_figure("the picture")
    figure = figure_class(figsize=(5 * len(sensitivity.parts), 4), layout="constrained")
    panels = figure.subplots(1, len(sensitivity.parts), squeeze=False)[0]
    for axes, (name, part) in zip(panels, sensitivity.parts.items(), strict=True):
        _draw(axes, name, part, sensitivity.loss)
    figure.savefig(file, dpi=120, format="png")


def _draw(axes: "Axes", name: str, part: PartSensitivity, whole: float) -> None:
    axes.plot(range(len(part.loss)), part.loss, marker="o", label="without the layer")
    axes.axhline(whole, color="tab:red", linestyle="--", label="the whole model")
    axes.set(title=name, xlabel="layer that is left out", ylabel="loss per token", yscale="log")
    axes.legend(fontsize=8)


def _order(scores: Sequence[float]) -> str:
    return " ".join(str(layer) for layer in sorted(range(len(scores)), key=lambda layer: scores[layer]))


def _run(part: PartSensitivity, length: int) -> str:
    scores = part.angular[length - 1]
    start = min(range(len(scores)), key=lambda layer: scores[layer])
    return f"{start} to {start + length - 1}"
