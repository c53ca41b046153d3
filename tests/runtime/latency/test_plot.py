"""Pictures of each protocol."""

import sys
from pathlib import Path
from typing import Any

import pytest

from salmonrun.runtime import Engine
from salmonrun.runtime.errors import MissingExtraError
from salmonrun.runtime.latency.outcome import ProtocolOutcome
from salmonrun.runtime.latency.plot import _lengths, plot
from tests.helpers.latencies import MEMORY, measured, outcome

REQUEST = ProtocolOutcome(
    "request",
    "",
    [
        measured(f"{length} s, {search}", {"whisper": [1.0], "decode": [total - 1.0], "total": [total], "ttft": [1.0]})
        for length, search, total in [
            (1, "greedy", 2.0),
            (1, "4 beams", 3.0),
            (1, "14 beams", 5.0),
            (2, "4 beams", 4.0),
        ]
    ],
    MEMORY,
)
STREAM = ProtocolOutcome(
    "stream",
    "",
    [measured("3 s", {"first_partial": [], "update": [0.1, 0.2], "final": [0.5], "updates": [2.0], "rtf": [0.1]})],
    MEMORY,
)
NOISE = measured("10 s of noise", {"ttft": [1.0], "tpot": [0.1], "latency": [1.1]})
REFERENCE = ProtocolOutcome("reference", "", [NOISE], MEMORY)
STREAMS = ProtocolOutcome(
    "load",
    "",
    [
        measured(name, {"final": [0.5], "lag": lag, "audio_per_s": [1.0]})
        for name, lag in (("1 stream", [0.1]), ("2 streams", []))
    ],
    MEMORY,
)
REQUESTS = ProtocolOutcome("load", "", [measured("2 requests", {"total": [0.5], "ttft": [0.1]})], MEMORY)


@pytest.mark.parametrize(
    "protocols",
    [[REQUEST], [STREAM], [REFERENCE], [STREAMS], [REQUESTS], [REFERENCE, REQUEST, STREAM, STREAMS]],
    ids=["request", "stream", "reference", "streams", "requests", "all"],
)
def test_a_picture(tiny_engine: Engine, tmp_path: Path, protocols: list[ProtocolOutcome]) -> None:
    plot(outcome(tiny_engine, *protocols), tmp_path / "picture")  # a PNG, whatever it is called
    written = (tmp_path / "picture").read_bytes()
    assert written.startswith(b"\x89PNG\r\n")
    panels = sum(2 if protocol.name == "request" else 1 for protocol in protocols)
    assert int.from_bytes(written[16:20]) == panels * 780  # pixels: 6.5 inches of 120


def test_lines_by_search() -> None:
    lines: dict[str, tuple[list[float], list[float]]] = {}

    class Axes:
        def plot(self, x: list[float], y: list[float], style: str, label: str) -> None:
            lines[label] = (x, y)

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments, **options: None

    _lengths(Axes(), REQUEST)
    assert lines["total, greedy"] == ([1.0], [2.0])
    assert lines["total, 4 beams"] == ([1.0, 2.0], [3.0, 4.0])  # and not those of 14 beams
    assert lines["total, 14 beams"] == ([1.0], [5.0])
    assert lines["ttft, 4 beams"] == ([1.0, 2.0], [1.0, 1.0])


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tiny_engine: Engine, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"--plot needs matplotlib: pip install 'salmonrun\[plot\]'"):
        plot(outcome(tiny_engine, REFERENCE), tmp_path / "picture")
