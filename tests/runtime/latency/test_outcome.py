"""What is stored, what limits see, what is drawn and what is shown."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from salmonrun.runtime import Engine, __version__
from salmonrun.runtime.latency.config import PROTOCOLS, ProtocolName
from salmonrun.runtime.latency.outcome import ProtocolOutcome, Ratio, interval, quantiles, write_json
from salmonrun.runtime.latency.run import measure
from salmonrun.runtime.latency.table import format_outcome
from tests.helpers.latencies import MEMORY, QUICK, measured, outcome


def strict(path: Path) -> Any:
    """JSON as others read it: without NaN and Infinity, which Python would write."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize(("model", "protocols"), [("tiny", ("reference",)), ("streaming", PROTOCOLS[1:])])
def test_everything_is_stored_and_shown(
    request: pytest.FixtureRequest,
    script: Callable[..., None],
    tmp_path: Path,
    model: str,
    protocols: tuple[ProtocolName, ...],
) -> None:
    script(0, 1000)
    engine: Engine = request.getfixturevalue(f"{model}_engine")
    everything = measure(engine, 0.5, replace(QUICK, protocols=protocols, num_beams=(1, 2), concurrency=(1, 2)))
    write_json(everything, tmp_path / "found.json")
    stored = strict(tmp_path / "found.json")
    assert stored["format"] == 1
    assert stored["manifest_sha256"] == engine.bundle.manifest.manifest_sha256
    assert stored["config"] == json.loads(json.dumps(asdict(everything.config)))
    assert stored["machine"]["onnxruntime"] == onnxruntime.__version__
    assert stored["machine"]["salmonrun"] == __version__
    assert stored["load_s"] == 0.5
    assert stored["baseline"] is None
    assert [protocol["name"] for protocol in stored["protocols"]] == list(protocols)
    table = format_outcome(everything)
    for protocol, written in zip(everything.protocols, stored["protocols"], strict=True):
        assert written["definition"] == protocol.definition
        assert protocol.definition.split(".")[0][:60] in table
        for case, entry in zip(protocol.cases, written["cases"], strict=True):
            assert (entry["name"], entry["headline"], entry["stopped"]) == (case.name, case.headline, "time limit")
            assert entry["cold"] == case.cold
            assert entry["samples"] == case.samples
            assert len(case.samples) == 1
            assert list(entry["summary"]) == case.metrics
            assert entry["summary"][case.headline]["p50"] == np.median(case.values(case.headline))
            assert entry["baseline_ratio"] == {}
            assert f"  {case.name}: once, until the time was up; of so few, the interval is the range" in table
    assert f"{engine.report().model}: whisper fp32" in table
    assert stored["manifest_sha256"][:12] in table
    streams = {"1 stream", "2 streams"} if "load" in protocols else set()
    assert set(stored["protocols"][-1]["keeps_real_time"]) == streams
    assert ("the most that keep real time: " in table) == bool(streams)


def test_what_is_no_number_is_not_stored(tiny_engine: Engine, tmp_path: Path) -> None:
    broken = ProtocolOutcome("request", "", [measured("1 s, greedy", {"total": [float("nan")]})], MEMORY)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(outcome(tiny_engine, broken), tmp_path / "found.json")
    assert not (tmp_path / "found.json").exists()


def test_summaries() -> None:
    case = measured("a", *({"gap": [float(i), float(i + 10)]} for i in range(6)), {"gap": []})
    assert interval(case, "gap") == (5.0, 10.0)  # medians of the six that have any
    assert interval(case, "other") is None
    found = quantiles(case.values("gap"))
    assert list(found) == ["p50", "p90", "p95", "p99", "max"]
    assert (found["p50"], found["max"]) == (7.5, 15.0)
    assert quantiles([]) == {}


def test_figures(tiny_engine: Engine) -> None:
    slow = measured("2 s, greedy", {"total": [4.0], "tpot": [0.1, 0.3]}, {"total": [2.0], "tpot": [0.2]})
    fast = measured("1 s, greedy", {"total": [1.0], "tpot": []})
    crowd = measured(
        "2 requests", {"total": [9.0], "tokens_per_s": [5.0], "requests_per_s": [1.0], "audio_per_s": [1.0]}
    )
    made = outcome(
        tiny_engine,
        ProtocolOutcome("request", "", [slow, fast], MEMORY),
        ProtocolOutcome("load", "", [crowd], replace(MEMORY, peak_mb=300.0)),
    )
    figures = made.figures()
    quantile_names = [f"{metric}_{q}" for metric in ("total", "tpot") for q in ("p50", "p90", "p95", "p99", "max")]
    assert set(figures) == {"load", "bundle_mb", "rss_peak_mb", "rss_steady_mb", *quantile_names}
    assert figures["total_p50"] == [3.0, 1.0, 9.0]
    assert figures["total_max"] == [4.0, 1.0, 9.0]
    assert figures["tpot_p50"] == pytest.approx([0.2])
    assert figures["rss_peak_mb"] == [120.0, 300.0]
    assert figures["load"] == [0.5]


def test_ratios_are_of_repetitions_made_together() -> None:
    ours = measured("a", *({"total": [value], "whisper": [0.1]} for value in (1.0, 2.0, 4.0)))
    theirs = measured("a", *({"total": [value]} for value in (3.0, 4.0, 20.0, 99.0)))  # the last one was alone
    other = measured("b", {"total": [1.0]})
    found = ProtocolOutcome("request", "", [ours, other], MEMORY, baseline=[theirs])
    assert found.ratio(ours, "total") == Ratio(3.0, 2.5, 4.0)
    assert found.ratio(ours, "whisper") is None
    assert found.ratio(other, "total") is None


# The table


def sample(total: float, **stages: float) -> dict[str, list[float]]:
    return {**{stage: [taken] for stage, taken in stages.items()}, "total": [total], "rtf": [total / 10]}


def test_cases_in_the_table(tiny_engine: Engine) -> None:
    known = measured("1 s, greedy", *[sample(0.5, prefill=0.25, decode=0.2)] * 7)
    known.stopped = "narrow"
    few = measured("2 s, greedy", *[sample(2.0, prefill=1.5), sample(3.0, prefill=3.0)], cold=sample(8.0))
    theirs = [measured("1 s, greedy", *[sample(1.25)] * 7), measured("2 s, greedy", *[sample(1.0)] * 2)]
    protocol = ProtocolOutcome(
        "request", "Long words. " * 30, [known, few], MEMORY, theirs, {"steady_mb": 1, "peak_mb": 480}
    )
    lines = format_outcome(outcome(tiny_engine, protocol)).splitlines()
    assert all(len(line) <= 140 for line in lines)
    assert "  1 s, greedy: 7 times, until they are known well enough" in lines
    assert "  2 s, greedy: 2 times, until the time was up; of so few, the interval is the range" in lines
    assert any(line.split()[:2] == ["total", "500"] and line.endswith("2.50 (2.50 - 2.50)") for line in lines)
    (total,) = (line for line in lines if line.split()[:2] == ["total", "2.5"])
    assert "2 s - 3 s" in total
    assert "8 s" in total
    assert "  the stages add up to 90.0% to 90.0% of the total" in lines
    assert "  the stages add up to 75.0% to 100.0% of the total" in lines
    assert (
        "  memory: 100 MiB resident when loaded (at most 150 until then), 110 at the end, at most 120 since it was "
        in ("\n".join(lines))
    )
    assert "  PyTorch: 1 MiB at the end, at most 480: 4.0 times" in lines


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"1 stream": True, "2 streams": True, "4 streams": False}, "2 streams"),
        ({"16 streams": True, "4 streams": True}, "16 streams"),  # in whatever order they were asked for
        ({"1 stream": False}, "none of these"),
    ],
)
def test_real_time_in_the_table(tiny_engine: Engine, kept: dict[str, bool], said: str) -> None:
    case = measured(
        "1 stream", {"final": [1.0], "lag": [], "updates": [0.0], "audio_per_s": [0.98765]}, headline="final"
    )
    protocol = ProtocolOutcome("load", "d", [case], MEMORY, keeps_real_time=kept)
    lines = format_outcome(outcome(tiny_engine, protocol)).splitlines()
    assert f"  the most that keep real time: {said}" in lines
    assert [line.split() for line in lines if line.startswith("  lag")] == [["lag", "-"]]  # there was no update
    (speed,) = (line.split()[1] for line in lines if line.startswith("  audio_per_s"))
    assert speed == "0.988"


# Memory


def test_memory_of_other_shapes(tiny_engine: Engine) -> None:
    memory = replace(MEMORY, peak_is_since_load=False, device_mb=77.0)
    text = format_outcome(outcome(tiny_engine, ProtocolOutcome("request", "d", [], memory)))
    assert "at most 120 loading included; 77 MiB of the GPU" in text
