"""The comparison with other engines, in its tiny shape: what it says, not how fast anything is."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers import compare, environments, page
from benchmarks.peers.engines import ENGINES, Engine
from benchmarks.peers.machine import machine
from benchmarks.peers.measure import Ready, Row, crash
from benchmarks.peers.processes import Worker, WorkerError
from benchmarks.peers.shapes import SHAPES, EncoderShape, LanguageShape
from benchmarks.tables import place_marked
from salmonrun.training.model.whisper import WhisperEncoder
from salmonrun.training.starting.presets import WHISPER_LARGE_V3

pytest.importorskip("salmonrun.kernels.cpu._native")  # the others are compared with them

ROOT = Path(__file__).parents[2]
PAGE = "before\n<!-- bench: {} -->\nold\n| table |\n<!-- /bench -->\nafter\n"
KIND = machine()["kind"]
ELSEWHERE = ("machine, Z80", "llm-decode, tiny-llama, Z80", "llm-prefill, tiny-llama, Z80")
NAMES = (f"machine, {KIND}", f"llm-decode, tiny-llama, {KIND}", f"llm-prefill, tiny-llama, {KIND}")
pytestmark = pytest.mark.timeout(900)  # ten processes that import PyTorch, some of them at once: slow on a busy machine


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


def test_a_folder_that_is_no_checkout_is_named(tmp_path: Path) -> None:
    with pytest.raises(environments.InstallationError, match=f"{tmp_path} is no checkout"):
        environments.make(tmp_path, "ik_llama", {"ik_llama": tmp_path})


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


def test_our_page_has_a_place_for_every_table() -> None:
    made = {f"{name}, another shape, Z80": "| x |" for name in page.TABLES} | {"machine, Z80": "| x |"}
    ours = (ROOT / "docs" / "performance.md").read_text()
    assert place_marked(ours, made).count("| x |\n<!-- /bench -->") == 4


@pytest.fixture
def dying(tmp_path: Path) -> Path:
    """A Python that dies of an instruction that its processor has not."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nread line\nkill -ILL $$\n")
    python.chmod(0o755)
    return python


def test_a_peer_that_crashes_is_run_as_built_otherwise(dying: Path, tmp_path: Path) -> None:
    engine = next(engine for engine in ENGINES if engine.peer == "llama.cpp")
    given = {engine.environment: dying, engine.fallback: Path(sys.executable)}
    ours = Engine(
        "it",
        "it",
        "llm",
        engine.environment,
        "pytorch_worker",
        "int8",
        1.0,
        fallback=engine.fallback,
        fallback_note="other",
    )
    rows = {"tiny-llama": {"it": Row("tiny-llama", ours)}}
    ready = compare.prepare(tmp_path, rows, given, {})["tiny-llama"]
    assert [one.python for one in ready] == [Path(sys.executable)]
    assert ready[0].engine.note == "other: as built for this machine, the worker was killed by signal 4"


def test_a_peer_that_lives_is_left_alone(tmp_path: Path) -> None:
    engine = next(engine for engine in ENGINES if engine.name == "PyTorch fp32")
    assert crash(Ready(engine, Path(sys.executable), tmp_path / "nowhere"), tmp_path) == ""


def test_a_worker_says_what_is_wrong_and_sleeps_between_requests(tmp_path: Path) -> None:
    worker = Worker(Path(sys.executable), "salmonrun_worker", 1, tmp_path / "logs" / "worker.log")
    try:
        with pytest.raises(WorkerError, match=r"BundleError: .*nowhere"):
            worker.request(do="load", model=str(tmp_path / "nowhere"), threads=1)
        state = Path(f"/proc/{worker.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        assert state == "T"
    finally:
        worker.close()


def test_a_worker_that_dies_is_reported(tmp_path: Path) -> None:
    worker = Worker(Path("/bin/false"), "salmonrun_worker", 1, tmp_path / "logs" / "worker.log")
    with pytest.raises(WorkerError, match="exit code 1"):
        worker.request(do="load")
    worker.close()


def test_flop_of_a_prompt() -> None:
    shape = SHAPES["Llama-3.2-1B"]
    assert isinstance(shape, LanguageShape)
    parameters = sum(math.prod(dims) for _, dims in shape.tensors())
    assert parameters == 1_235_814_400  # as published
    # Two for each weight and token, the output layer at one position; attention is 3 % at 512 tokens.
    body = parameters - 128256 * 2048
    assert shape.flop(512) == pytest.approx(2 * body * 512, rel=0.05)


def test_parameters_of_the_encoder() -> None:
    shape = SHAPES["Whisper-large-v3-turbo"]
    assert isinstance(shape, EncoderShape)
    encoder = sum(math.prod(dims) for name, dims in shape.tensors() if name.startswith("model.encoder."))
    with torch.device("meta"):
        module = WhisperEncoder(WHISPER_LARGE_V3)
    assert encoder == sum(parameter.numel() for parameter in module.parameters())
