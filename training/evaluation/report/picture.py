"""Quality against what it costs, as PNG: each model a labelled point, the Pareto front drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from salmonrun.runtime.picture import load_figure
from salmonrun.training.evaluation.report.measured import Measured, Quality, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

Place = tuple[float, int, int]  # of a name: how many points from its dot, and to which side
NEAR = 7.0
SIDES = ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))  # of these the first that is free
PLACES: tuple[Place, ...] = tuple((far, *side) for far in (NEAR, 2 * NEAR, 4 * NEAR, 6 * NEAR) for side in SIDES)
ALIGNED = {-1: ("right", "top"), 0: ("center", "center"), 1: ("left", "bottom")}


@dataclass(frozen=True)
class Axis:
    """A panel: quality against one cost."""

    title: str
    value: Callable[[Measured], float]


COSTS = (
    Axis("latency: first token and one more, ms", lambda one: one.latency_ms),
    Axis("memory at most, MiB", lambda one: one.peak_mb),
    Axis("size, MiB", lambda one: one.size_mb),
)


def draw_trade_off(
    file: str | Path,
    measured: Sequence[Measured],
    tasks: Sequence[str],
    costs: Sequence[Axis] = COSTS,
    before: Sequence[Measured | None] = (),
) -> None:
    """A row of panels for each task, a panel for each cost.

    Args:
        file: the PNG.
        measured: of each model; the first, the baseline, is red.
        tasks: whose quality is drawn.
        costs: of the panels.
        before: of each, the same model at an earlier time, drawn hollow, and a line to what became of it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = load_figure("the picture")(figsize=(5.6 * len(costs), 4.6 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), len(costs), squeeze=False)
    for row, task in zip(panels, tasks, strict=True):
        for axes, cost in zip(row, costs, strict=True):
            _draw(axes, measured, task, cost, before)
        row[0].set_ylabel(_title(task, measured[0].quality[task]))
    figure.suptitle("red: the baseline; green: nothing better costs as little", fontsize=9, color="grey")
    figure.draw_without_rendering()  # panels get their places
    for row, task in zip(panels, tasks, strict=True):
        for axes, cost in zip(row, costs, strict=True):
            earlier = [
                (cost.value(now), _shown(then, task)) for now, then in zip(measured, before, strict=False) if then
            ]
            _label(axes, [(one.name, cost.value(one), _shown(one, task)) for one in measured], earlier)
    figure.savefig(file, dpi=120, format="png")


def _draw(axes: "Axes", measured: Sequence[Measured], task: str, cost: Axis, before: Sequence[Measured | None]) -> None:
    points = [(cost.value(one), _shown(one, task)) for one in measured]
    for earlier, (x, y) in zip(before, points, strict=False):
        if earlier is not None:
            axes.plot([x, x], [_shown(earlier, task), y], color="lightgrey", linewidth=1, zorder=1)
            axes.plot(x, _shown(earlier, task), "o", color="white", markeredgecolor="grey", markersize=5, zorder=2)
    sign = -1 if measured[0].quality[task].measure == "WER" else 1
    front = pareto_front([(x, sign * y) for x, y in points])
    axes.plot(*zip(*(points[i] for i in front), strict=True), color="tab:green", linewidth=1, zorder=2)
    colors = ["tab:red" if i == 0 else "tab:green" if i in front else "tab:blue" for i in range(len(points))]
    axes.scatter([x for x, _ in points], [y for _, y in points], c=colors, s=28, zorder=3)
    axes.set(xlabel=cost.title)
    _scale(axes, [x for x, _ in points], [y for _, y in points] + [_shown(one, task) for one in before if one])
    axes.spines[["top", "right"]].set_visible(False)


def _scale(axes: "Axes", costs: Sequence[float], qualities: Sequence[float]) -> None:
    """Room for names; from 0 where figures differ by half and more, and errors of several sizes by their logarithm."""
    axes.margins(0.18)
    if min(costs) < max(costs) / 2:
        axes.set_xlim(left=0)
    if 0 < min(qualities) < max(qualities) / 10:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    elif min(qualities) < max(qualities) / 2:
        axes.set_ylim(bottom=0)


def _title(task: str, quality: Quality) -> str:
    if quality.measure == "WER":
        return f"{task}: WER in %, lower is better"
    return f"{task}: {quality.measure}, higher is better"


def _shown(one: Measured, task: str) -> float:
    quality = one.quality[task]
    return 100 * quality.value if quality.measure == "WER" else quality.value


def _label(axes: "Axes", named: Sequence[tuple[str, float, float]], earlier: Sequence[tuple[float, float]]) -> None:
    """A name beside each dot, where it covers neither dots nor names; where there is no such place, the least bad."""
    taken = [_around(axes, x, y) for x, y in (*((x, y) for _, x, y in named), *earlier)]
    for name, x, y in named:
        covered: dict[Place, float] = {}
        for place in PLACES:
            box = _written(axes, name, x, y, place)
            covered[place] = sum(_overlap(box, other) for other in taken) + _outside(box, axes)
            if not covered[place]:
                break
        taken.append(_written(axes, name, x, y, min(covered, key=lambda place: covered[place]), keep=True))


def _written(axes: "Axes", name: str, x: float, y: float, place: Place, keep: bool = False) -> "Bbox":
    """The box of a name, in pixels; it stays on the panel if it is to be kept."""
    far, right, up = place
    text = axes.annotate(
        name,
        (x, y),
        (far * right, far * up),
        textcoords="offset points",
        ha=ALIGNED[right][0],
        va=ALIGNED[up][1],
        fontsize=8,
        arrowprops={"arrowstyle": "-", "color": "lightgrey", "shrinkB": 3} if far > NEAR else None,
    )
    box = text.get_window_extent()
    if not keep:
        text.remove()
    return box


def _around(axes: "Axes", x: float, y: float) -> "Bbox":
    from matplotlib.transforms import Bbox

    across, up = axes.transData.transform((x, y))
    return Bbox.from_extents(across - 5, up - 5, across + 5, up + 5)


def _overlap(one: "Bbox", other: "Bbox") -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(width * height) if width > 0 and height > 0 else 0.0


def _outside(box: "Bbox", axes: "Axes") -> float:
    """How much of a name is not within the panel."""
    return float(box.width * box.height) - _overlap(box, axes.get_window_extent())
