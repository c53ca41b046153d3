"""The curve of pruning: which points there are, a run of a tiny model that is gone on with, what it recommends."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.pruning.page import curve_table, fastest, recommendation
from benchmarks.pruning.points import Point, points_of
from benchmarks.pruning.steps import Found
from salmonrun.training.checkpoint import open_checkpoint
from salmonrun.training.evaluation.report.cost import Cost
from salmonrun.training.evaluation.report.measured import Measured, Quality
from salmonrun.training.pruning.predict import cost
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from tests.helpers.kernels import needs_kernels
from tests.helpers.runs import write_noises

ROOT = Path(__file__).parents[2]
TINY = preset("tiny")


def test_points_are_what_the_layers_allow() -> None:
    config = replace(TINY, llm=TINY.llm | {"num_hidden_layers": 30}, whisper=replace(TINY.whisper, layers=6))
    points = {point.name: point.options for point in points_of(config, (0.1, 0.2, 0.3, 0.4))}
    counts = [int(name.removeprefix("LLM -")) for name in points if name.startswith("LLM -") and name[5:].isdigit()]
    assert counts == [3, 6, 9, 12]
    assert [name for name in points if name.startswith("Whisper -")] == [
        *("Whisper -1", "Whisper -1 merged", "Whisper -2", "Whisper -2 merged")
    ]
    assert points["LLM -6 merged"] == ("--llm", "0.2000", "--merge")
    assert points["LLM -12, Whisper -2"] == ("--llm", "0.4000", "--whisper", "0.3333")
    assert points["Whisper rank 67%"] == ("--low-rank", "whisper=0.6667")
    assert len(points) == 1 + 8 + 4 + 4 + 2
    assert [point.name for point in points_of(TINY, (0.1, 0.4))] == ["whole"]  # of two layers none can go


def run(checkpoint: Path, data: Path, out: Path, *options: str) -> str:
    command = (sys.executable, "-m", "benchmarks.pruning", str(checkpoint), str(data), "--train", str(data))
    settings = (
        "run.steps=1",
        "run.batch_size=2",
        "run.warmup_steps=0",
        "--time-limit",
        "0.2",
        "--rounds",
        "1",
        "--shares",
        "0.25",
    )
    line = (*command, "--out", str(out), "--only", "LLM -1", *options, "--options", *settings)
    done = subprocess.run(line, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(900)
@pytest.mark.tools
@needs_kernels
def test_a_curve_of_a_tiny_model(tmp_path: Path) -> None:
    """Measured unhealed first, then gone on with: what was measured is not measured again."""
    init_checkpoint(replace(TINY, llm=TINY.llm | {"num_hidden_layers": 4}), tmp_path / "checkpoint")
    data, out = write_noises(tmp_path, ("one", "two three")), tmp_path / "out"
    unhealed = run(tmp_path / "checkpoint", data, out, "--unhealed")
    assert [line.split(" | ")[0] for line in unhealed.splitlines()[2:4]] == ["| whole", "| LLM -1"]
    journal = (out / "report" / "measured.jsonl").read_text()
    assert not list(out.glob("*/healed"))

    printed = run(tmp_path / "checkpoint", data, out)
    assert (out / "report" / "measured.jsonl").read_text().startswith(journal)
    whole, point = json.loads((out / "results.json").read_text())
    assert whole["before"]["sha256"] != whole["after"]["sha256"]  # trained on, as the others are
    assert open_checkpoint(out / "LLM--1" / "healed" / "final").config.llm["num_hidden_layers"] == 3
    assert not list(out.glob("*/healed/checkpoint-*"))
    assert f"{point['after']['size_bytes'] / 2**20:.1f}" in printed
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")


def measured(wer: float, latency_s: float) -> Measured:
    taken = Cost(latency_s, 0.001, latency_s, 100.0, None, 6)
    return Measured("x", "bundle", "0" * 64, 2**20, taken, {"asr": Quality(9, wer, wer, 0.5, 0)}, (), 1.0)


def test_the_fastest_that_is_good_enough_is_recommended() -> None:
    """Each at its best, as it is or healed, and by its latency in turn with the others."""
    size = cost(TINY)
    found = [
        Found(Point("whole"), measured(0.05, 1.0), measured(0.04, 1.0), size),
        Found(Point("slow"), measured(0.5, 0.9), measured(0.04, 0.9), size),
        Found(
            Point("good"), measured(0.5, 3.0), measured(0.045, 3.0), size, cost=Cost(0.7, 0.001, 0.7, 100.0, None, 6)
        ),
        Found(Point("bad"), measured(0.5, 0.1), measured(0.06, 0.1), size),
        Found(Point("unhealed"), measured(0.2, 0.1), None, size),
        Found(Point("refused"), None, None, size, "too far from PyTorch"),
    ]
    chosen = fastest(found, "asr", 0.01)
    assert chosen is found[2]
    assert "good, healed (4.5% beside 4.0%; latency 0.70, size 1.00 of it)" in recommendation(found, "asr", 0.01)
    spoilt = Found(Point("spoilt"), measured(0.045, 0.5), measured(0.2, 0.5), size)  # by the training
    assert "spoilt, as it is (4.5%" in recommendation([*found, spoilt], "asr", 0.01)
    assert "leave nothing out" in recommendation([found[0], found[3]], "asr", 0.01)
    assert "nothing to compare with" in recommendation(found[5:], "asr", 0.01)
    lines = curve_table(found, "asr").splitlines()
    assert lines[4].startswith(f"| good | 50.0% | 4.5% | {size.parameters / 1e6:.2f} | ")
    assert lines[4].endswith(" | 1.0 | 100 | 700.0 ms | 1.00 ms |")
    assert lines[-1].startswith("| refused | - | - | ")
    assert lines[-1].endswith(" | too far from PyTorch |  |  |  |")
