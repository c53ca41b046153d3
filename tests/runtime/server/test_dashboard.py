"""The dashboard asks for what there is, and for all of it."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from salmonrun.runtime.schedule import Round
from salmonrun.runtime.server.metrics import Metrics
from tests.helpers.servers import Running
from tests.runtime.server.test_server import get, metric, transcribe

DOCS = Path(__file__).parents[3] / "docs"


def told(text: str) -> set[str]:
    """Names of a text of Prometheus, without what a histogram has of each name but its sum."""
    names = set(re.findall(r"^(salmonrun_\w+)[ {]", text, re.MULTILINE))
    return {name for name in names if not name.endswith("_created")}


def test_each_metric_of_the_dashboard_exists(server: Running) -> None:
    board = json.loads((DOCS / "grafana-dashboard.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"salmonrun_\w+", target["expr"])
    }
    transcribe(server)
    names = told(get(f"{server.url}/metrics")[1])
    assert asked <= names
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in names}
    assert families == {re.sub("_(bucket|sum|count)$", "", name) for name in asked}, "and none is left out"


def test_each_metric_is_in_the_docs(server: Running) -> None:
    page = (DOCS / "serving.md").read_text()
    for name in told(get(f"{server.url}/metrics")[1]):
        assert f"`{re.sub('_(bucket|sum|count)$', '', name.removeprefix('salmonrun_'))}`" in page


def test_a_round_is_told() -> None:
    metrics = Metrics()
    metrics.round(Round(searches=3, steps=2, prompts=100))
    lines = metrics.text().decode().splitlines()
    for line in (
        "salmonrun_iterations_total 1.0",
        "salmonrun_prompt_tokens_total 100.0",
        "salmonrun_decode_tokens_total 2.0",
        'salmonrun_iteration_batch_size_bucket{le="2.0"} 0.0',
        'salmonrun_iteration_batch_size_bucket{le="4.0"} 1.0',
        "salmonrun_iteration_tokens_sum 102.0",
    ):
        assert line in lines


def test_rounds_are_counted(server: Running) -> None:
    before = {name: metric(server, name) for name in ("iterations_total", "decode_tokens_total", "prompt_tokens_total")}
    transcribe(server)
    grown = {name: metric(server, name) - value for name, value in before.items()}
    assert grown["decode_tokens_total"] == 10  # the prompt gives the first of 11 tokens
    assert grown["iterations_total"] == 11
    assert grown["prompt_tokens_total"] > 20
