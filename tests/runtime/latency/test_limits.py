"""Figures that must not be exceeded."""

import pytest

from salmonrun.runtime import Engine
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.latency.config import PROTOCOLS, LatencyConfig, ProtocolName
from salmonrun.runtime.latency.limits import Exceeded, check_limits, exceeded, parse_limits
from salmonrun.runtime.latency.outcome import Outcome, ProtocolOutcome
from salmonrun.runtime.latency.run import measure
from salmonrun.runtime.latency.sampling import StopRule
from tests.helpers.latencies import MEMORY, measured, outcome


@pytest.fixture
def found(tiny_engine: Engine) -> Outcome:
    """Medians of 2 and 3 s, at most 9 and 3."""
    cases = [measured("1 s, greedy", {"total": [1.0, 2.0, 9.0]}), measured("2 s, greedy", {"total": [3.0]})]
    return outcome(tiny_engine, ProtocolOutcome("request", "", cases, MEMORY))


def test_they_are_read() -> None:
    assert parse_limits("ttft_p50=0.8,rtf=0.5") == {"ttft_p50": 0.8, "rtf": 0.5}
    assert parse_limits(" rss_peak_mb = 900 ") == {"rss_peak_mb": 900.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--fail-over has ''; expected figure=limit, such as ttft_p50=0.8"),
        ("ttft", "--fail-over has 'ttft'"),
        ("ttft=", "--fail-over has 'ttft='"),
        ("ttft=soon", "--fail-over has 'ttft=soon'"),
        ("=1", "--fail-over has '=1'"),
        ("rtf=1,", "--fail-over has ''"),
        ("rtf=1=2", "--fail-over has 'rtf=1=2'"),
        ("rtf=nan", "--fail-over has 'rtf=nan'"),  # nothing would ever exceed it
        ("rtf=inf", "--fail-over has 'rtf=inf'"),
        ("rtf=1,rtf=2", "--fail-over has 'rtf' twice"),
        ("tokens_per_s=10", "'tokens_per_s', of which more is better"),
        ("audio_per_s_p50=10", "'audio_per_s_p50', of which more is better"),
    ],
)
def test_they_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_limits(text)


@pytest.mark.parametrize(
    ("limits", "worst"),
    [
        ({"total": 2.5}, [Exceeded("total", 3.0, 2.5)]),
        ({"total_p50": 2.5}, [Exceeded("total_p50", 3.0, 2.5)]),
        ({"total": 3.0}, []),  # kept
        (
            {"total_max": 8.0, "total": 4.0, "rss_peak_mb": 119.0},
            [("total_max", 9.0, 8.0), ("rss_peak_mb", 120.0, 119.0)],
        ),
        ({"load": 0.4, "rss_steady_mb": 110.0}, [Exceeded("load", 0.5, 0.4)]),
        ({}, []),
    ],
    ids=str,
)
def test_the_worst_case_counts(found: Outcome, limits: dict[str, float], worst: list[Exceeded]) -> None:
    assert exceeded(found, limits) == [Exceeded(*one) if isinstance(one, tuple) else one for one in worst]


@pytest.mark.parametrize("name", ["ttft", "total_p42", "load_p50", "total_p50_p50"])
def test_a_figure_that_was_not_measured(found: Outcome, name: str) -> None:
    expected = (
        rf"names '{name}', which was not measured; there are load, bundle_mb, rss_peak_mb, rss_steady_mb; "
        r"and, as it is \(the median\) or with _p50, _p90, _p95, _p99, _max: total"
    )
    with pytest.raises(ConfigError, match=expected):
        exceeded(found, {name: 1.0})


@pytest.mark.parametrize(
    ("protocol", "limits"),
    [
        ("request", ("load", "rtf", "ttft_p99", "audio_encoder")),
        ("reference", ("latency", "rss_peak_mb")),
        ("stream", ("at_once", "first_partial_max", "bundle_mb")),
        ("load", ("lag_p95", "updates")),
    ],
)
def test_what_a_protocol_measures_is_known_before(protocol: ProtocolName, limits: tuple[str, ...]) -> None:
    check_limits(dict.fromkeys(limits, 1.0), LatencyConfig(protocols=(protocol,)))
    check_limits(dict.fromkeys(limits, 1.0), LatencyConfig(protocols=PROTOCOLS))
    expected = "names 'speed', which is not measured; there are load, bundle_mb, rss_peak_mb, rss_steady_mb; and, "
    for wrong in ("speed", "load_p50", "speed_p50"):
        with pytest.raises(ConfigError, match=expected.replace("speed", wrong)):
            check_limits({wrong: 1.0}, LatencyConfig(protocols=(protocol,)))


def test_all_that_is_measured_may_be_limited(tiny_engine: Engine) -> None:
    """The list of a protocol is what it measures, of a bundle that has every stage."""
    quick = {"lengths_s": (1.0,), "num_beams": (1,), "tokens": 2, "utterance_s": 1.0, "concurrency": (1,)}
    for protocol in PROTOCOLS:
        for load_of in ("streams", "requests"):
            rule = StopRule(time_limit_s=0.0)
            config = LatencyConfig(protocols=(protocol,), load_of=load_of, paced=False, rule=rule, **quick)  # type: ignore[arg-type]
            figures = measure(tiny_engine, 0.0, config).figures()
            check_limits(dict.fromkeys(figures, 1.0), config)
            if protocol != "load" or load_of == "requests":
                for name in ("ttft", "tpot") if protocol != "stream" else ("final", "at_once"):
                    assert f"{name}_p50" in figures
