"""Latency as a test: figures that must not be exceeded."""

from dataclasses import dataclass

from runtime.errors import ConfigError
from runtime.latency.outcome import QUANTILES, Outcome


@dataclass(frozen=True)
class Exceeded:
    """A limit that was not kept."""

    figure: str
    value: float  # the worst of all cases
    limit: float


def parse_limits(text: str) -> dict[str, float]:
    """'ttft_p50=0.8,rtf=0.5' as a mapping; without a quantile it is the median.

    Raises:
        ConfigError: it does not read like that.
    """
    limits = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            limits[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise ConfigError(f"--fail-over has {part.strip()!r}; expected figure=limit, such as ttft_p50=0.8")
    return limits


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
            metrics = sorted(
                {figure.rsplit("_", 1)[0] if figure.endswith(tuple(QUANTILES)) else figure for figure in figures}
            )
            raise ConfigError(
                f"--fail-over names {name!r}, which was not measured; there are {', '.join(metrics)}, each as it is "
                f"(the median) or with {', '.join('_' + quantile for quantile in QUANTILES)}"
            )
        if (worst := max(values)) > limit:
            found.append(Exceeded(name, worst, limit))
    return found
