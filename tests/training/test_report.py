"""Models beside each other: measured for real, kept, added to; the figures that compare them, and the picture."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.__main__ import main
from salmonrun.training.data.annotation import Entry
from salmonrun.training.evaluation.report import picture
from salmonrun.training.evaluation.report.cost import Cost
from salmonrun.training.evaluation.report.measured import Measured, Quality, agreement, pareto_front
from salmonrun.training.evaluation.report.models import Model, name_models
from salmonrun.training.evaluation.report.report import first_of_each_task
from salmonrun.training.evaluation.report.table import format_report


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three transcripts and two captions of noise."""
    folder, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    entries = []
    for i in range(5):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(16000 + 2000 * i), 16000)
        entries.append({"path": f"{i}.wav", "text": f"word number {i}", "task": "asr" if i < 3 else "caption"})
    (folder / "annotation.json").write_text(json.dumps({"annotation": entries}))
    return folder / "annotation.json"


def report(data: Path, out: Path, *models: object, options: tuple[str, ...] = ()) -> int:
    common = ("--data", str(data), "--out", str(out), "--time-limit", "0.5", "--threads", "1")
    return main(["report", *map(str, models), *common, "--max-new-tokens", "6", *options])


def test_a_checkpoint_and_its_bundle_beside_each_other(
    data: Path, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert report(data, out, f"pytorch={tiny_checkpoint}", tiny_bundle) == 0
    first = capsys.readouterr()
    assert "1 of 2: pytorch\n" in first.err
    assert "2 of 2: bundle, about " in first.err
    found = json.loads((out / "report.json").read_text())
    assert found["baseline"] == "pytorch"
    checkpoint, bundle = found["models"]
    assert (checkpoint["kind"], bundle["kind"]) == ("checkpoint", "bundle")
    assert checkpoint["agreement"] == bundle["agreement"] == 1.0  # float32, both of them
    assert checkpoint["quality"] == bundle["quality"]
    assert set(bundle["quality"]) == {"asr", "caption"}
    assert bundle["quality"]["asr"]["entries"] == 3
    assert bundle["size_bytes"] == sum(file.stat().st_size for file in tiny_bundle.rglob("*") if file.is_file())
    for row in (checkpoint, bundle):
        cost = row["cost"]
        assert 0 < cost["tpot_s"] < cost["latency_s"]
        assert 0 < cost["ttft_s"] < cost["latency_s"]
    assert bundle["cost"]["peak_mb"] < checkpoint["cost"]["peak_mb"]  # a process of its own has no PyTorch in it
    head, *rows = first.out.splitlines()[:3]
    assert head.split()[:4] == ["asr", "WER", "caption", "CIDEr-D"]
    assert [row.split()[0] for row in rows] == ["pytorch", "bundle"]
    ratio = bundle["cost"]["peak_mb"] / checkpoint["cost"]["peak_mb"]
    assert f"{bundle['cost']['peak_mb']:.0f} MiB ({ratio:.2f})" in rows[1]
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")

    journal = (out / "measured.jsonl").read_text()
    assert report(data, out, f"pytorch={tiny_checkpoint}", tiny_bundle, f"again={tiny_bundle}") == 0
    second = capsys.readouterr()
    assert "1 of 3: pytorch is known\n2 of 3: bundle is known\n3 of 3: again" in second.err
    assert (out / "measured.jsonl").read_text().startswith(journal)
    assert (out / "measured.jsonl").read_text().count("\n") == journal.count("\n") + 1

    assert report(data, out, tiny_bundle, options=("--limit", "1")) == 1
    assert "was made with entries" in capsys.readouterr().err


def test_a_model_that_cannot_be_measured_says_why(
    data: Path, streaming_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(data, tmp_path / "out", streaming_bundle) == 1
    error = capsys.readouterr().err
    assert "cannot be measured: " in error
    assert "this bundle hears 4 s at once" in error


def test_nothing_of_the_task(data: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(data, tmp_path / "out", tiny_bundle, options=("--task", "qa")) == 1
    assert "has no entry of ['qa']" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names(tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run / "bundle").mkdir(parents=True)
        (tmp_path / run / "bundle" / "bundle.json").write_text("{}")
    first, second = (str(tmp_path / run / "bundle") for run in "ab")
    assert [model.name for model in name_models([first])] == ["bundle"]
    assert [model.name for model in name_models([first, second])] == ["a-bundle", "b-bundle"]
    assert [model.name for model in name_models([f"x={first}", second])] == ["x", "bundle"]
    with pytest.raises(ConfigError, match="2 models are called 'x'; name them: NAME=PATH"):
        name_models([f"x={first}", f"x={second}"])
    with pytest.raises(CheckpointError, match=r"a has neither bundle\.json nor config\.json"):
        name_models([str(tmp_path / "a")])


def test_a_changed_checkpoint_is_another(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    assert Model("x", tiny_checkpoint).sha256() == Model("y", tiny_checkpoint).sha256()
    assert Model("x", tiny_checkpoint).sha256() != Model("x", tiny_bundle).sha256()


def test_the_first_entries_of_each_task() -> None:
    entries = [Entry("set", i, Path("a.wav"), "x", task) for i, task in enumerate(("asr", "qa", "asr", "qa", "asr"))]
    assert [entry.index for entry in first_of_each_task(entries, 2)] == [0, 1, 2, 3]
    assert first_of_each_task(entries, None) == entries
    with pytest.raises(ConfigError, match="limit is 0"):
        first_of_each_task(entries, 0)


def test_agreement() -> None:
    assert agreement([[1, 2, 3, 4]], [[1, 2, 3, 4]]) == 1.0
    assert agreement([[1, 2, 3, 4]], [[1, 3, 4]]) == 0.75  # one is missing, and the others are not all wrong for it
    assert agreement([[1, 2], [3, 4]], [[1, 2], [5, 6]]) == 0.5
    assert agreement([[1]], [[2, 3, 4]]) == 0.0


def test_pareto_front() -> None:
    points = [(3.0, 9.0), (1.0, 5.0), (2.0, 4.0), (1.0, 6.0), (2.0, 8.0), (4.0, 9.0)]
    assert pareto_front(points) == [3, 4, 0]


def measured(name: str, wer: float, latency_s: float, size_mb: float) -> Measured:
    quality = {"asr": Quality(10, wer, wer, 1 - wer, 0)}
    cost = Cost(0.9 * latency_s, 0.1 * latency_s, latency_s, 100 * latency_s, None, 6, ("busy",))
    return Measured(name, "bundle", "0" * 64, round(size_mb * 2**20), cost, quality, (), 1.0)


def test_the_table_has_ratios_to_the_first() -> None:
    models = [measured("whole", 0.05, 2.0, 100), measured("half", 0.08, 1.0, 50)]
    lines = format_report(models, [1.0, 0.93]).splitlines()
    whole, half = lines[1:3]
    assert "(" not in whole
    expected = "half 8.0% 93.0% 100 MiB (0.50) 900 ms (0.50) 100 ms (0.50) 1000 ms (0.50) 50 MiB (0.50)"
    assert " ".join(half.split()) == expected
    assert lines[-1] == "half: busy"


def test_labels_cover_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = [measured(f"LLM -{i} merged, healed", 0.05 + 0.001 * i, 1.0 - 0.004 * i, 100 - i) for i in range(9)]
    boxes: dict[object, list[object]] = {}
    plain = picture._written

    def watched(axes, name, x, y, place, keep=False):  # type: ignore[no-untyped-def]
        box = plain(axes, name, x, y, place, keep)
        if keep:
            boxes.setdefault(axes, []).append(box)
        return box

    monkeypatch.setattr(picture, "_written", watched)
    picture.draw_trade_off(tmp_path / "x.png", models, ["asr"], before=[replace(one, name="b") for one in models])
    assert len(boxes) == 3
    for found in boxes.values():
        assert len(found) == len(models)
        overlaps = [picture._overlap(a, b) for i, a in enumerate(found) for b in found[:i]]  # type: ignore[arg-type]
        assert not any(overlaps)
