import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.decoders import compare, identity
from benchmarks.decoders.inside.worker import CASES
from salmonrun.export import ExportOptions, export_bundle
from salmonrun.runtime.matrices import kernels

pytest.importorskip("salmonrun.kernels.cpu._native")

ROOT = Path(__file__).parents[2]
PAGE = "before\n<!-- bench: decoders, Z80 -->\nold\n<!-- /bench -->\nafter\n"


def run(bundle: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "benchmarks.decoders.compare", str(bundle), *options)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.tools
@pytest.mark.timeout(900)
def test_each_decoder_takes_every_case_in_every_round(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(llm_precision="int8", decoder="both")
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    (tmp_path / "performance.md").write_text(PAGE)
    done = run(bundle, "--rounds", "2", "--root", str(tmp_path / "root"), "--docs", str(tmp_path), "--busy")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "root" / "decoders.json").read_text())
    assert set(results["decoders"]) == {"onnx", "native"}
    assert set(results["samples"]) == set(CASES)
    for samples in results["samples"].values():
        assert {name: len(taken) for name, taken in samples.items()} == {"onnx": 2, "native": 2}
        assert min(map(min, samples.values())) > 0
    shown = (tmp_path / "performance.md").read_text()
    assert compare.page(results) in shown
    assert "old" in shown  # of another machine
    assert "of the bandwidth" in shown


def test_a_bundle_for_one_decoder_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run(tiny_bundle, "--root", str(tmp_path), "--busy")
    assert done.returncode == 1
    assert "has weights for onnx; export it with --decoder both" in done.stderr


def test_logits_are_the_same_bits_in_any_company(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ExportOptions(llm_precision="int4", decoder="native", parity_budget=2)
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    monkeypatch.setattr(sys, "argv", ["identity", str(bundle)])
    monkeypatch.setattr(identity, "THREADS", (1, 2))
    assert identity.main() == 0
    count = 2 * len(identity.WAYS) * len(kernels().instruction_sets())
    assert capsys.readouterr().out.splitlines()[-1] == f"{count} ways, 6 rows of logits each: 0 differ"
    alone = identity.WAYS["alone"]
    monkeypatch.setitem(identity.WAYS, "wrong", lambda decoder, ids: np.nextafter(alone(decoder, ids), np.float32(9)))
    assert identity.main() == 1
    assert " logits differ" in capsys.readouterr().out
