"""The comparison with other engines from end to end, in its tiny shape: what it says, not how fast anything is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import page
from benchmarks.peers.machine import machine
from benchmarks.tables import place_marked

pytest.importorskip("salmonrun.kernels.cpu._native")  # the others are compared with them

ROOT = Path(__file__).parents[2]
PAGE = "before\n<!-- bench: {} -->\nold\n| table |\n<!-- /bench -->\nafter\n"
KIND = machine()["kind"]
ELSEWHERE = ("machine, Z80", "llm-decode, tiny-llama, Z80", "llm-prefill, tiny-llama, Z80")
NAMES = (f"machine, {KIND}", f"llm-decode, tiny-llama, {KIND}", f"llm-prefill, tiny-llama, {KIND}")
# Ten processes that import PyTorch, some of them at once: minutes on a busy machine.
pytestmark = [pytest.mark.tools, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Results of one run with a peer that cannot be made, and the folder of documents it wrote to."""
    folder = tmp_path_factory.mktemp("peers")
    docs = folder / "docs"
    docs.mkdir()
    (docs / "performance.md").write_text("".join(map(PAGE.format, [*ELSEWHERE, "whisper-encoder, any, Z80"])))
    options = ["--shape", "tiny-llama", "--rounds", "2", "--only", "salmonrun,pytorch,llama.cpp,ik_llama.cpp", "--busy"]
    options += ["--python", f"torch={sys.executable}", "--python", "llama_cpp=/nowhere/python"]
    command = [sys.executable, "-m", "benchmarks.peers.compare", "--root", str(folder / "root"), "--docs", str(docs)]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), docs


@pytest.fixture(scope="module")
def rows(run: tuple[dict[str, Any], Path]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in run[0]["rows"]}


def test_results_tell_machine_method_limits_and_versions(run: tuple[dict[str, Any], Path]) -> None:
    results, _ = run
    assert set(results) == {"date", "machine", "method", "limits", "busy", "rows"}
    assert results["method"]["rounds"] == 2
    assert results["method"]["threads"] == results["machine"]["cores"]
    assert set(page.LIMITS) - {"vnni_op_s", "amx_op_s"} <= set(results["limits"]) <= set(page.LIMITS)
    assert {"cpu", "instructions", "kind", "cores"} <= set(results["machine"])
    assert all(figures["count"] == 4 and figures["median"] > 0 for figures in results["limits"].values())


def test_every_engine_has_every_case(rows: dict[str, dict[str, Any]]) -> None:
    measured = [row for row in rows.values() if not row["failure"]]
    assert {row["name"] for row in measured} == {
        "salmonrun int4",
        "salmonrun int4, calibrated",
        "salmonrun int4, ONNX Runtime",
        "PyTorch bf16",
        "PyTorch fp32",
    }
    for row in measured:
        assert set(row["cases"]) == {"prefill 4", "prefill 16", "decode"}
        assert row["versions"]
        assert row["peak_rss"] > 1e6
        for figures in row["cases"].values():
            assert figures["count"] == 2
            assert figures["q1"] <= figures["median"] <= figures["q3"]
            assert figures["ratio"]["count"] == 2
            assert figures["share"] > 0


def test_ratios_are_to_salmonrun_in_the_same_round(rows: dict[str, dict[str, Any]]) -> None:
    assert {figures["ratio"]["median"] for figures in rows["salmonrun int4"]["cases"].values()} == {1.0}


def test_engines_compute_the_same(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["PyTorch fp32"]["error"] == 0
    assert rows["PyTorch bf16"]["error"] < 0.05
    assert 0.001 < rows["salmonrun int4"]["error"] < 0.5
    assert rows["salmonrun int4"]["correlation"] > 0.9


def test_a_peer_that_cannot_be_made_has_a_row_with_the_reason(
    rows: dict[str, dict[str, Any]], run: tuple[dict[str, Any], Path]
) -> None:
    assert "/nowhere/python" in rows["llama.cpp Q4_0"]["failure"]
    assert rows["llama.cpp Q4_0"]["cases"] == {}
    lines = [line for line in (run[1] / "performance.md").read_text().splitlines() if line.startswith("| llama.cpp")]
    assert len(lines) == 2
    assert all("/nowhere/python" in line for line in lines)


def test_a_peer_of_no_registry_says_what_to_clone(rows: dict[str, dict[str, Any]]) -> None:
    assert "git clone https://github.com/ikawrakow/ik_llama.cpp" in rows["ik_llama.cpp Q4_0"]["failure"]
    assert "--checkout ik_llama=FOLDER" in rows["ik_llama.cpp Q4_0"]["failure"]


def test_tables_stand_beside_those_of_other_machines(run: tuple[dict[str, Any], Path]) -> None:
    results, docs = run
    tables = page.tables(results)
    assert tuple(tables) == NAMES
    kept = "before\n<!-- bench: {} -->\nold\n| table |\n<!-- /bench -->\n"
    expected = "".join(
        kept.format(elsewhere) + f"\n<!-- bench: {name} -->\n{tables[name]}\n<!-- /bench -->\nafter\n"
        for elsewhere, name in zip(ELSEWHERE, NAMES, strict=True)
    )
    written = (docs / "performance.md").read_text()
    assert written == expected + PAGE.format("whisper-encoder, any, Z80")
    assert place_marked(written, tables) == written
    shown = {line.split("(images/")[1].rstrip(")") for line in written.splitlines() if "(images/" in line}
    assert len(shown) == 2
    assert {path.name for path in (docs / "images").iterdir()} == shown


def test_tables_of_a_busy_machine_say_so(run: tuple[dict[str, Any], Path]) -> None:
    tables = page.tables(run[0] | {"busy": "the machine is busy: very"})
    assert all("The machine is busy: very." in text for text in tables.values())
