"""The threshold that a bundle gets from its own answers to speech."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from salmonrun.export import confidence
from salmonrun.export.__main__ import main
from salmonrun.export.confidence import choose_threshold
from salmonrun.runtime import Engine
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.manifest import ConfidenceThreshold
from tests.helpers.exports import write_speech


@pytest.mark.parametrize("count", [50, 99, 100, 1000])
def test_a_threshold_rejects_at_most_2_percent(count: int) -> None:
    scores = -np.random.default_rng(count).exponential(size=count)
    found = choose_threshold(scores.tolist(), "speech.json")
    assert found is not None
    assert (found.recordings, found.annotation) == (count, "speech.json")
    assert found.false_rejection == np.mean(scores < found.score) == count // 50 / count
    assert found.score in scores


def test_equal_scores_are_rejected_together_or_not_at_all() -> None:
    assert choose_threshold([-1.0] * 60, "x") == ConfidenceThreshold(-1.0, 0.0, 60, "x")


def test_fewer_than_50_say_nothing() -> None:
    assert choose_threshold([-1.0] * 49, "x") is None


def test_an_export_measures_it(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[float] = []

    def choose(scores: Sequence[float], annotation: str) -> ConfidenceThreshold | None:
        measured.extend(scores)
        return choose_threshold(scores, annotation)

    monkeypatch.setattr(confidence, "choose_threshold", choose)
    annotation, out = write_speech(tmp_path, 50), tmp_path / "bundle"
    options = ["--calibration-speech", str(annotation), "--window", "trimmed", "--quiet"]
    assert main([str(tiny_checkpoint), str(out), *options]) == 0
    threshold = open_bundle(out).manifest.confidence
    assert threshold == choose_threshold(measured, "speech.json")
    assert threshold is not None
    assert threshold.recordings == 50
    assert f"threshold {threshold.score:.3f}" in capsys.readouterr().out
    result = Engine.load(out).generate(tmp_path / "7.wav", task="asr")
    assert result.score == pytest.approx(measured[7], abs=1e-6)
    assert result.low_confidence == (measured[7] < threshold.score)


def test_too_few_recordings_are_no_threshold_and_it_is_said(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotation, out = write_speech(tmp_path, 2), tmp_path / "bundle"
    assert main([str(tiny_checkpoint), str(out), "--calibration-speech", str(annotation), "--quiet"]) == 0
    assert open_bundle(out).manifest.confidence is None
    assert "no threshold: fewer than 50 recordings" in capsys.readouterr().out


def test_an_entry_that_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotation = write_speech(tmp_path, 2, path="gone.wav")
    options = ["--calibration-speech", str(annotation), "--quiet"]
    assert main([str(tiny_checkpoint), str(tmp_path / "bundle"), *options]) == 1
    assert "speech.json: entry 1: " in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
