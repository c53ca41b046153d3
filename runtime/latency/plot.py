"""An outcome as a picture: where the time goes, how it grows with the recording, how it grows with streams."""

from pathlib import Path
from typing import Any

import numpy as np

from salmonrun.runtime.latency.outcome import Outcome, ProtocolOutcome
from salmonrun.runtime.latency.request import STAGES
from salmonrun.runtime.picture import load_figure


def plot(outcome: Outcome, path: str | Path) -> None:
    """Write a PNG with a panel for each protocol that was measured.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure_class = load_figure("--plot")
    panels = [panel for protocol in outcome.protocols for panel in _panels(protocol)]
    figure = figure_class(figsize=(6.5 * len(panels), 4.8), layout="constrained")
    for axes, (draw, protocol) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, protocol)
    engine = outcome.engine
    figure.suptitle(f"{engine.model}, {engine.threads} threads of {outcome.machine['processor']}", fontsize=10)
    figure.savefig(path, dpi=120, format="png")


def _panels(protocol: ProtocolOutcome) -> list[tuple[Any, ProtocolOutcome]]:
    if protocol.name == "request":
        return [(_stages, protocol), (_lengths, protocol)]
    return [(_load if protocol.name == "load" else _spread, protocol)]


def _stages(axes: Any, protocol: ProtocolOutcome) -> None:
    names = [case.name for case in protocol.cases]
    left = np.zeros(len(names))
    stages = [stage for stage in STAGES if any(case.values(stage) for case in protocol.cases)]
    for stage in stages:
        widths = np.array([np.median(case.values(stage) or [0.0]) for case in protocol.cases])
        axes.barh(names, widths, left=left, label=stage)
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel("seconds, medians")
    axes.set_title("where the time goes")
    axes.legend(fontsize=8)


def _lengths(axes: Any, protocol: ProtocolOutcome) -> None:
    searches = dict.fromkeys(case.name.split(", ")[1] for case in protocol.cases)
    for search in searches:
        cases = [case for case in protocol.cases if case.name.endswith(f", {search}")]
        seconds = [float(case.name.split(" s")[0]) for case in cases]
        for metric, style in (("total", "-"), ("ttft", "--")):
            medians = [float(np.median(case.values(metric))) for case in cases]
            axes.plot(seconds, medians, f"o{style}", label=f"{metric}, {search}")
    axes.set_xlabel("length of the recording, seconds")
    axes.set_ylabel("seconds")
    axes.set_ylim(bottom=0)
    axes.set_title("latency")
    axes.legend(fontsize=8)


def _load(axes: Any, protocol: ProtocolOutcome) -> None:
    clients = [int(case.name.split()[0]) for case in protocol.cases]
    for metric in ("final", "update", "lag", "first_partial", "ttft", "total"):
        if all(case.values(metric) for case in protocol.cases):
            found = [np.quantile(case.values(metric), (0.5, 0.95)) for case in protocol.cases]
            (line,) = axes.plot(clients, [median for median, _ in found], "o-", label=f"{metric}, median")
            axes.plot(clients, [high for _, high in found], ":", color=line.get_color(), label=f"{metric}, p95")
    axes.set_xlabel("at once")
    axes.set_ylabel("seconds")
    axes.set_ylim(bottom=0)
    axes.set_title("latency under load")
    axes.legend(fontsize=8)


def _spread(axes: Any, protocol: ProtocolOutcome) -> None:
    case = protocol.cases[0]
    metrics = [metric for metric in case.metrics if case.values(metric) and metric not in ("updates", "rtf")]
    axes.boxplot([case.values(metric) for metric in metrics], tick_labels=metrics, whis=(5, 95), showfliers=False)
    axes.set_ylabel("seconds: median, quartiles, p5 and p95")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{protocol.name}, {case.name}")
