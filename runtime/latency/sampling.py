"""Repeat until it is known: medians with intervals, measured in turn."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Sample = dict[str, list[float]]  # metric -> the values of one repetition: one total, many gaps between tokens
LEAST = 6  # repetitions of which smallest and largest enclose the median at 95 %: 1 - 2 * 0.5 ** 6 = 0.97


@dataclass(frozen=True)
class StopRule:
    """When a median is known well enough."""

    precision: float = 0.05  # half the width of its 95 % interval, as a share of it
    time_limit_s: float = 60.0  # of all cases of a protocol together; the first round is always finished

    def narrow(self, values: Sequence[float]) -> bool:
        """Whether the median of so many independent values is known."""
        low, high = median_interval(values)
        return len(values) >= LEAST and high - low <= 2 * self.precision * float(np.median(values))


@dataclass(frozen=True)
class Case:
    """Something to be measured, again and again."""

    name: str
    headline: str  # the metric whose interval decides how often
    run: Callable[[], Sample]


@dataclass
class Measured:
    """What was found about a case."""

    name: str
    headline: str
    cold: Sample = field(default_factory=dict)  # the first repetition, which is not among the samples
    samples: list[Sample] = field(default_factory=list)
    stopped: Literal["narrow", "time limit"] = "time limit"

    @property
    def metrics(self) -> list[str]:
        """Names, in the order in which they were first seen."""
        return list(dict.fromkeys(metric for sample in self.samples for metric in sample))

    def values(self, metric: str) -> list[float]:
        """All values of all repetitions."""
        return [value for sample in self.samples for value in sample.get(metric, [])]

    def medians(self, metric: str) -> list[float]:
        """One value for each repetition that has any."""
        return [float(np.median(sample[metric])) for sample in self.samples if sample.get(metric)]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median of independent values, by order statistics: no distribution is assumed.

    (Conover 1999, Practical Nonparametric Statistics, 3.2: ranks from the binomial distribution of p = 1/2.) Of fewer
    than `LEAST` values it is their range, which holds the median less often.
    """
    ordered, count = sorted(values), len(values)
    rank, tail = 0, 0.5**count  # probability that at most `rank` values lie below the median
    while tail + math.comb(count, rank + 1) * 0.5**count <= 0.025:
        rank += 1
        tail += math.comb(count, rank) * 0.5**count
    return ordered[rank], ordered[count - 1 - rank]


def repeat(
    cases: Sequence[Case], rule: StopRule, clock: Callable[[], float] = time.perf_counter
) -> Iterator[list[Measured]]:
    """Measure all cases in turn, so that what the machine does meanwhile meets all alike; yields after each one.

    The first repetition of each is cold, and counts as such. A case that is known is not repeated.
    """
    found = [Measured(case.name, case.headline) for case in cases]
    for case, measured in zip(cases, found, strict=True):
        measured.cold = case.run()
        yield found
    started = clock()
    while any(measured.stopped != "narrow" for measured in found):
        for case, measured in zip(cases, found, strict=True):
            if measured.samples and (measured.stopped == "narrow" or clock() - started > rule.time_limit_s):
                continue
            measured.samples.append(case.run())
            if rule.narrow(measured.medians(case.headline)):
                measured.stopped = "narrow"
            yield found
        if clock() - started > rule.time_limit_s:
            return
