"""Latency as a test: figures that must not be exceeded."""

import math
from dataclasses import dataclass

from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.latency import load, reference, request, stream
from salmonrun.runtime.latency.config import LatencyConfig
from salmonrun.runtime.latency.outcome import MORE_IS_BETTER, QUANTILES, WHOLE_RUN, Outcome


@dataclass(frozen=True)
class Exceeded:
    """A limit that was not kept."""

    figure: str
    value: float  # the worst of all cases
    limit: float


def parse_limits(text: str) -> dict[str, float]:
    """'ttft_p50=0.8,rtf=0.5' as a mapping; without a quantile it is the median.

    Raises:
        ConfigError: it does not read like that, or limits a figure of which more is better.
    """
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (half.strip() for half in part.partition("="))
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if not name or not math.isfinite(limit):
            raise ConfigError(f"--fail-over has {part.strip()!r}; expected figure=limit, such as ttft_p50=0.8")
        if name in limits:
            raise ConfigError(f"--fail-over has {name!r} twice; expected each figure once")
        if name.startswith(MORE_IS_BETTER):
            raise ConfigError(f"--fail-over names {name!r}, of which more is better; limit total or final instead")
        limits[name] = limit
    return limits


def check_limits(limits: dict[str, float], config: LatencyConfig) -> None:
    """Refuse, before it is measured, what no protocol of these will measure.

    Raises:
        ConfigError: it names such a figure.
    """
    measured = {
        "reference": reference.METRICS,
        "request": request.METRICS,
        "stream": stream.METRICS,
        "load": load.METRICS[config.load_of],
    }
    metrics = dict.fromkeys(metric for name in config.protocols for metric in measured[name])
    figures: dict[str, list[float]] = {name: [] for name in WHOLE_RUN}
    figures |= {f"{metric}_{quantile}": [] for metric in metrics for quantile in QUANTILES}
    for name in limits:
        if name not in figures and f"{name}_p50" not in figures:
            raise ConfigError(f"--fail-over names {name!r}, which is not measured; there are {_listed(figures)}")


def exceeded(outcome: Outcome, limits: dict[str, float]) -> list[Exceeded]:
    """The limits that some case does not keep.

    Raises:
        ConfigError: a figure that was not measured.
    """
    figures = outcome.figures()
    found = []
    for name, limit in limits.items():
        values = figures.get(name) or figures.get(f"{name}_p50")
        if values is None:
            raise ConfigError(f"--fail-over names {name!r}, which was not measured; there are {_listed(figures)}")
        if (worst := max(values)) > limit:
            found.append(Exceeded(name, worst, limit))
    return found


def _listed(figures: dict[str, list[float]]) -> str:
    whole = [name for name in figures if not name.endswith(tuple(QUANTILES))]
    metrics = dict.fromkeys(name.rsplit("_", 1)[0] for name in figures if name.endswith(tuple(QUANTILES)))
    suffixes = ", ".join(f"_{quantile}" for quantile in QUANTILES)
    return f"{', '.join(whole)}; and, as it is (the median) or with {suffixes}: {', '.join(metrics)}"
