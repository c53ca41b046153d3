"""A distillation that is killed, first while the teacher runs and then while the student is trained."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from salmonrun.runtime.schema import to_dict
from salmonrun.training.distillation.distill import distill
from salmonrun.training.distillation.recipe import DistillRecipe
from salmonrun.training.starting.init import init_checkpoint
from tests.helpers.distilling import distill_recipe, four_layers, leave_out
from tests.helpers.runs import logged, write_noises

ROOT = Path(__file__).parents[2]
RECORDINGS, STEPS, LIMIT_S = 60, 12, 240


def killed_when(recipe: DistillRecipe, file: Path, come: Callable[[], bool]) -> None:
    """Start the command, and kill it as soon as it has come so far; that it ends before is a failure."""
    file.write_text(yaml.safe_dump(to_dict(recipe)))
    command = [sys.executable, "-m", "salmonrun", "distill", "train", "--cfg-path", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + LIMIT_S
        while not come():
            assert process.poll() is None, process.stderr and process.stderr.read()[-2000:].decode()
            assert time.monotonic() < until
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def lines(cache: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in cache.glob("*/*.jsonl"))


def test_it_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    init_checkpoint(four_layers(), teacher, seed=5)
    leave_out(teacher, student, {"llm": [1, 2]})
    (tmp_path / "data").mkdir()
    annotation = write_noises(tmp_path / "data", [f"number {i % 7}" for i in range(RECORDINGS)])
    cache, settings = tmp_path / "cut-cache", {"top_k": 8, "steps": STEPS, "batch_size": 1, "save_every": 1}
    cut = distill_recipe(student, teacher, annotation, tmp_path / "cut", cache=str(cache), **settings)

    killed_when(cut, tmp_path / "cut.yaml", lambda: lines(cache) > 3)
    kept = lines(cache)
    assert 3 < kept < RECORDINGS, "it was to be killed while the teacher ran"
    assert not (tmp_path / "cut").exists()

    killed_when(cut, tmp_path / "cut.yaml", lambda: any((tmp_path / "cut").glob("checkpoint-[3-9]")))
    assert lines(cache) == RECORDINGS, "of what the teacher had said, nothing was to be asked again"
    assert len(list(cache.glob("*/*.records"))) == 2
    assert not (tmp_path / "cut" / "final").exists()

    distill(cut, resume=True)
    whole = distill_recipe(student, teacher, annotation, tmp_path / "whole", cache=str(tmp_path / "cache"), **settings)
    distill(whole)
    first, second = (logged(tmp_path / name, STEPS, "loss") for name in ("cut", "whole"))
    assert len(first) == STEPS
    assert max(abs(one - other) for one, other in zip(first, second, strict=True)) <= 1e-5
