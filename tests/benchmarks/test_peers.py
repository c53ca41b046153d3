"""What the comparison with other engines is made of; test_comparison.py runs it."""

import math
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.peers import compare, environments, page
from benchmarks.peers.engines import ENGINES, Engine
from benchmarks.peers.measure import Ready, Row, crash
from benchmarks.peers.processes import Worker, WorkerError
from benchmarks.peers.shapes import SHAPES, EncoderShape, LanguageShape
from benchmarks.tables import place_marked
from salmonrun.training.model.whisper import WhisperEncoder
from salmonrun.training.starting.presets import WHISPER_LARGE_V3

pytest.importorskip("salmonrun.kernels.cpu._native")  # the others are compared with them

ROOT = Path(__file__).parents[2]


def test_a_folder_that_is_no_checkout_is_named(tmp_path: Path) -> None:
    with pytest.raises(environments.InstallationError, match=f"{tmp_path} is no checkout"):
        environments.make(tmp_path, "ik_llama", {"ik_llama": tmp_path})


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
