"""What was found, in the form in which it is shown and stored."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from salmonrun.runtime.latency.baseline import Baseline
from salmonrun.runtime.latency.config import LatencyConfig
from salmonrun.runtime.latency.machine import Memory
from salmonrun.runtime.latency.sampling import Measured, median_interval
from salmonrun.runtime.report import Report

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
MORE_IS_BETTER = ("audio_per_s", "requests_per_s", "tokens_per_s")  # no limit can be set on them
WHOLE_RUN = ("load", "bundle_mb", "rss_peak_mb", "rss_steady_mb")  # figures that have no quantiles
FORMAT = 1


@dataclass(frozen=True)
class Ratio:
    """How many times the bundle's the baseline's figure is, repetition by repetition."""

    median: float
    low: float  # quartiles
    high: float


@dataclass(frozen=True)
class ProtocolOutcome:
    """What one protocol found."""

    name: str
    definition: str
    cases: list[Measured]
    memory: Memory
    baseline: list[Measured] = field(default_factory=list)  # of the cases of the same names
    baseline_memory_mb: dict[str, float] = field(default_factory=dict)
    keeps_real_time: dict[str, bool] = field(default_factory=dict)  # case -> whether

    def ratio(self, case: Measured, metric: str) -> Ratio | None:
        """The baseline's figure over the bundle's, of repetitions made one after the other."""
        other = next((one for one in self.baseline if one.name == case.name), None)
        if other is None:
            return None
        ours, theirs = case.medians(metric), other.medians(metric)
        if not ours or not theirs:
            return None
        low, median, high = np.quantile([b / a for a, b in zip(ours, theirs, strict=False)], (0.25, 0.5, 0.75))
        return Ratio(float(median), float(low), float(high))


@dataclass(frozen=True)
class Outcome:
    """All of a run."""

    date: str  # UTC, ISO 8601
    machine: dict[str, str | int]
    engine: Report
    manifest_sha256: str  # of the bundle
    config: LatencyConfig
    load_s: float  # Engine.load, files hashed; the system's page cache is as it was found
    protocols: list[ProtocolOutcome]
    notes: tuple[str, ...] = ()  # what was left out
    baseline: Baseline | None = None

    def figures(self) -> dict[str, list[float]]:
        """Every figure that a limit can be set on, with its value in each case: ttft_p50, rtf_max, rss_peak_mb, ..."""
        found: dict[str, list[float]] = {"load": [self.load_s], "bundle_mb": [self.engine.bundle_bytes / 2**20]}
        for protocol in self.protocols:
            found.setdefault("rss_peak_mb", []).append(protocol.memory.peak_mb)
            found.setdefault("rss_steady_mb", []).append(protocol.memory.steady_mb)
            for case in protocol.cases:
                for metric in (metric for metric in case.metrics if metric not in MORE_IS_BETTER):
                    for quantile, value in quantiles(case.values(metric)).items():
                        found.setdefault(f"{metric}_{quantile}", []).append(value)
        return found


def quantiles(values: list[float]) -> dict[str, float]:
    """p50 to p99 and the largest; empty of no values."""
    if not values:
        return {}
    found = np.quantile(values, list(QUANTILES.values()))
    return {name: float(value) for name, value in zip(QUANTILES, found, strict=True)}


def interval(case: Measured, metric: str) -> tuple[float, float] | None:
    """The 95 % interval of the median of a metric's repetitions."""
    medians = case.medians(metric)
    return median_interval(medians) if medians else None


def write_json(outcome: Outcome, path: str | Path) -> None:
    """Everything, every sample included."""
    found = {"format": FORMAT, **asdict(outcome)}
    for protocol, written in zip(outcome.protocols, found["protocols"], strict=True):
        for case, entry in zip(protocol.cases, written["cases"], strict=True):
            entry["summary"] = {
                metric: {**quantiles(case.values(metric)), "median_interval": interval(case, metric)}
                for metric in case.metrics
            }
            ratios = {metric: protocol.ratio(case, metric) for metric in case.metrics}
            entry["baseline_ratio"] = {metric: asdict(ratio) for metric, ratio in ratios.items() if ratio}
    Path(path).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
