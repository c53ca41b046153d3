"""A distillation that is killed, first while the teacher runs and then while the student is trained."""

import multiprocessing
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from salmonrun.runtime.schema import to_dict
from salmonrun.training.__main__ import main
from salmonrun.training.distillation.distill import distill
from salmonrun.training.distillation.recipe import DistillRecipe
from salmonrun.training.starting.init import init_checkpoint
from tests.helpers.distilling import distill_recipe, four_layers, leave_out
from tests.helpers.runs import logged, write_noises

RECORDINGS, STEPS = 60, 12


def on_one_thread(arguments: list[str]) -> None:
    """As the tests run: sums over several have another order."""
    torch.set_num_threads(1)
    main(arguments)


def killed_when(recipe: DistillRecipe, file: Path, come: Callable[[], bool]) -> None:
    """Start the command in a process, and kill it as soon as it has come so far; that it ends before is a failure."""
    file.write_text(yaml.safe_dump(to_dict(recipe)))
    # A server that has imported all of it, and in which nothing has run: a process of it begins at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["salmonrun.training.distillation.distill"])
    process = context.Process(target=on_one_thread, args=(["distill", "train", "--cfg-path", str(file)],))
    process.start()
    try:
        while not come():
            assert process.is_alive()
            time.sleep(0.002)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL


def lines(cache: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in cache.glob("*/*.jsonl"))


def snapshot(out: Path) -> int:
    return max((int(folder.name.split("-")[1]) for folder in out.glob("checkpoint-*")), default=0)


@pytest.mark.timeout(600)  # three starts
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

    killed_when(cut, tmp_path / "cut.yaml", lambda: snapshot(tmp_path / "cut") >= 3)
    assert lines(cache) == RECORDINGS, "of what the teacher had said, nothing was to be asked again"
    assert len(list(cache.glob("*/*.records"))) == 2
    assert 3 <= snapshot(tmp_path / "cut") < STEPS

    distill(cut, resume=True)
    whole = distill_recipe(student, teacher, annotation, tmp_path / "whole", cache=str(tmp_path / "cache"), **settings)
    distill(whole)
    first, second = (logged(tmp_path / name, STEPS, "loss") for name in ("cut", "whole"))
    assert len(first) == STEPS
    assert max(abs(one - other) for one, other in zip(first, second, strict=True)) <= 1e-5
