"""How sure a median is, and when it is repeated no more."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from salmonrun.runtime.latency.sampling import LEAST, Case, Measured, Sample, StopRule, median_interval, repeat
from tests.helpers.latencies import FakeClock


def smaller_half(count: int) -> list[Fraction]:
    """Probability that at most k of so many values lie below the median, by tossing one coin after the other."""
    exactly = [Fraction(1)]
    for _ in range(count):
        exactly = [(a + b) / 2 for a, b in zip([*exactly, Fraction(0)], [Fraction(0), *exactly], strict=True)]
    return [sum(exactly[: k + 1], Fraction(0)) for k in range(count + 1)]


@pytest.mark.parametrize("count", range(1, 61))
def test_intervals_are_the_narrowest_that_hold_the_median(count: int) -> None:
    below = smaller_half(count)
    # Values 0 .. count - 1: the interval's ends are their ranks.
    low, high = median_interval(np.random.default_rng(count).permutation(count).tolist())
    assert low + high == count - 1
    if count >= LEAST:
        assert 1 - 2 * below[int(low)] >= Fraction(95, 100)
        assert 1 - 2 * below[int(low) + 1] < Fraction(95, 100)
    else:
        assert low == 0
        assert 1 - 2 * below[0] < Fraction(95, 100)


@pytest.mark.parametrize("count", [1_023, 1_100, 10_000])
def test_thousands_of_values(count: int) -> None:
    """By the normal distribution that the binomial approaches: within 2 ranks of n / 2 - 1.96 * sqrt(n) / 2."""
    low, _ = median_interval(range(count))
    assert low == pytest.approx(count / 2 - 1.96 * count**0.5 / 2, abs=2)


@pytest.mark.parametrize("count", [6, 9, 15, 40])
@pytest.mark.parametrize(("kind", "median"), [("exponential", np.log(2.0)), ("normal", 0.0)])
def test_coverage(count: int, kind: str, median: float) -> None:
    rng = np.random.default_rng(count)
    draw: Callable[..., np.ndarray] = getattr(rng, "standard_" + kind)
    intervals = [median_interval(values) for values in draw(size=(4000, count)).tolist()]
    # 0.961 to 0.969 by the binomial distribution, and a standard error of 0.003.
    assert np.mean([low <= median <= high for low, high in intervals]) >= 0.95


def test_an_interval_needs_no_order_and_changes_nothing() -> None:
    values = [3.0, 1.0, 2.0]
    assert median_interval(values) == (1.0, 3.0)
    assert values == [3.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("values", "narrow"),
    [
        ([1.0] * (LEAST - 1), False),  # too few, however alike
        ([1.0] * LEAST, True),
        ([15.0, 16.0, 16.0, 16.0, 16.0, 17.0], True),  # the whole range, 1/16 either way
        ([14.9, 16.0, 16.0, 16.0, 16.0, 17.0], False),
        ([15.0, 16.0, 16.0, 16.0, 16.0, 17.1], False),
        ([0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0], True),  # of nine, the outermost are left out
        ([0.0] * LEAST, True),
    ],
)
def test_narrow(values: list[float], narrow: bool) -> None:
    assert StopRule(precision=1 / 16).narrow(values) is narrow
    assert StopRule(precision=1 / 16).narrow([8 * value for value in values]) is narrow


# repeat


def scripted(name: str, order: list[str], values: list[float], clock: FakeClock, taken: float = 1.0) -> Case:
    """A case that takes so long and finds these values, and then the last one for ever."""

    def run() -> Sample:
        order.append(name)
        clock.advance(taken)
        return {"total": [values.pop(0) if len(values) > 1 else values[0]]}

    return Case(name, "total", run)


def run(cases: list[Case], rule: StopRule, clock: FakeClock) -> tuple[list[Measured], int]:
    """What was found at last, and how often it was told."""
    found = list(repeat(cases, rule, clock))
    return found[-1], len(found)


def test_in_turn_until_narrow() -> None:
    clock, order = FakeClock(), list[str]()
    jumpy = [99.0, *[1.0, 5.0] * 5, *[3.0] * 8, 3.0]
    cases = [scripted("steady", order, [7.0, 2.0], clock), scripted("jumpy", order, jumpy, clock)]
    (steady, other), told = run(cases, StopRule(precision=0.05, time_limit_s=1e6), clock)
    assert order[: 2 + 2 * LEAST] == ["steady", "jumpy"] * (1 + LEAST)
    assert set(order[2 + 2 * LEAST :]) == {"jumpy"}  # what is known is not repeated
    assert told == len(order)
    assert steady.cold == {"total": [7.0]}
    assert steady.values("total") == [2.0] * LEAST
    assert other.cold == {"total": [99.0]}
    assert (steady.stopped, other.stopped) == ("narrow", "narrow")
    rule = StopRule(precision=0.05)
    assert rule.narrow(other.values("total"))
    assert not rule.narrow(other.values("total")[:-1])


def test_a_time_limit_ends_it_after_the_first_round() -> None:
    clock, order = FakeClock(), list[str]()
    cases = [scripted(name, order, [1.0], clock) for name in "abc"]
    found, told = run(cases, StopRule(time_limit_s=0.0), clock)
    assert order == ["a", "b", "c"] * 2
    assert told == 6
    assert [(one.stopped, len(one.samples)) for one in found] == [("time limit", 1)] * 3


@pytest.mark.parametrize(
    ("limit", "rounds", "more"),
    [(10.0, 1, []), (15.0, 1, ["slow"]), (21.0, 2, []), (22.0, 2, ["slow"])],
)
def test_the_limit_counts_from_behind_the_cold_round_and_cuts_no_repetition(
    limit: float, rounds: int, more: list[str]
) -> None:
    clock, order = FakeClock(), list[str]()
    cases = [scripted("slow", order, [1.0, 2.0], clock, 10.0), scripted("jumpy", order, [1.0, 4.0] * 50, clock)]
    found, _ = run(cases, StopRule(time_limit_s=limit), clock)
    assert order == ["slow", "jumpy"] * (1 + rounds) + more
    assert [one.stopped for one in found] == ["time limit"] * 2


def test_one_may_be_known_when_the_time_is_up() -> None:
    clock, order = FakeClock(), list[str]()
    cases = [scripted("steady", order, [1.0], clock), scripted("jumpy", order, [1.0, 4.0] * 50, clock)]
    found, _ = run(cases, StopRule(time_limit_s=30.0), clock)
    assert [one.stopped for one in found] == ["narrow", "time limit"]
    assert len(found[0].samples) == LEAST
    assert len(found[1].samples) > LEAST


def test_it_is_told_after_every_repetition() -> None:
    clock, order = FakeClock(), list[str]()
    cases = [scripted(name, order, [1.0], clock) for name in "ab"]
    seen = [
        (sum(bool(one.cold) for one in found), sum(len(one.samples) for one in found))
        for found in repeat(cases, StopRule(time_limit_s=0.0), clock)
    ]
    assert seen == [(1, 0), (2, 0), (2, 1), (2, 2)]


def test_values_and_medians() -> None:
    found = Measured("a", "total", samples=[{"gap": [1.0, 2.0, 9.0]}, {"gap": []}, {"total": [5.0], "gap": [4.0, 5.0]}])
    assert found.metrics == ["gap", "total"]
    assert found.values("gap") == [1.0, 2.0, 9.0, 4.0, 5.0]
    assert found.medians("gap") == [2.0, 4.5]
    assert found.medians("none") == []
