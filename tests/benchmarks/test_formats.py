from pathlib import Path

import pytest

from benchmarks.formats import compare
from salmonrun.export.confidence import read_speech
from salmonrun.export.weights.native import native_weights
from salmonrun.training.checkpoint import open_checkpoint

pytest.importorskip("salmonrun.kernels.cpu._native")

ROOT = Path(__file__).parents[2]
CALIBRATION = ROOT / "demo" / "calibration" / "annotation.json"


@pytest.mark.tools
def test_calibrated_weights_are_nearer_than_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_checkpoint(ROOT / "demo" / "checkpoint")
    recordings = read_speech(CALIBRATION, source.config)
    caches = {"int8, keys and values in int8", "int4, calibrated, keys and values in int8"}
    wanted = caches | {"int8", "int4, nearest", "int4, calibrated"}
    forms = [form for form in compare.formats() if form.weights in (native_weights("int8"), native_weights("int4"))]
    monkeypatch.setattr(compare, "formats", lambda: forms)
    found = compare.measure(source, recordings[:12], recordings[12:60], tmp_path)
    by_name = {form.name: one for form, one in found.items()}
    assert set(by_name) == wanted
    assert by_name["int8"].error < by_name["int4, calibrated"].error < 0.9 * by_name["int4, nearest"].error
    assert by_name["int8, keys and values in int8"].error < 2 * by_name["int8"].error
    assert by_name["int8"].bytes > by_name["int4, nearest"].bytes
    assert all(one.word_errors < 0.3 for one in found.values())
    shown = compare.page("demo", 12, found)
    assert f"{by_name['int4, calibrated'].error:.3f}" in shown
