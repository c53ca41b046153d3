"""A distillation that is killed, first while the teacher runs and then while the student is trained."""

import multiprocessing
import os
import signal
from importlib import import_module
from pathlib import Path
from typing import Any

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

RECORDINGS, STEPS = 7, 6
TEACHES = ("salmonrun.training.distillation.teacher", "Teacher", "teach")  # a recording each time
TRAINS = ("salmonrun.training.finetuning.trainer", "RecipeTrainer", "compute_loss")  # a step each time


def run_and_die(arguments: list[str], method: tuple[str, str, str], calls: int) -> None:
    """Run a command, and be killed where this method is called once more than so often."""
    torch.set_num_threads(1)  # as the tests run: sums over several have another order
    module, owner, name = method
    made = getattr(import_module(module), owner)
    original, left = getattr(made, name), [calls]

    def counted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(made, name, counted)
    main(arguments)


def killed(recipe: DistillRecipe, file: Path, method: tuple[str, str, str], calls: int) -> None:
    """Run the command in a process of its own, and kill it when it has come so far."""
    file.write_text(yaml.safe_dump(to_dict(recipe)))
    # A server that has imported all of it, and in which nothing has run: a process of it begins at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["salmonrun.training.distillation.distill"])
    command = ["distill", "train", "--cfg-path", str(file)]
    process = context.Process(target=run_and_die, args=(command, method, calls))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def lines(cache: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in cache.glob("*/*.jsonl"))


def snapshots(out: Path) -> set[int]:
    return {int(folder.name.split("-")[1]) for folder in out.glob("checkpoint-*")}


@pytest.mark.tools
@pytest.mark.timeout(600)  # three starts
def test_it_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    init_checkpoint(four_layers(), teacher, seed=5)
    leave_out(teacher, student, {"llm": [1, 2]})
    (tmp_path / "data").mkdir()
    annotation = write_noises(tmp_path / "data", [f"number {i}" for i in range(RECORDINGS)])
    cache, settings = tmp_path / "cut-cache", {"top_k": 8, "steps": STEPS, "batch_size": 1, "save_every": 1}
    cut = distill_recipe(student, teacher, annotation, tmp_path / "cut", cache=str(cache), **settings)

    killed(cut, tmp_path / "cut.yaml", TEACHES, 3)
    assert lines(cache) == 3, "what the teacher had said is there"
    assert not (tmp_path / "cut").exists()

    killed(cut, tmp_path / "cut.yaml", TRAINS, 3)
    assert lines(cache) == RECORDINGS, "of what the teacher had said, nothing was to be asked again"
    assert len(list(cache.glob("*/*.records"))) == 2
    assert max(snapshots(tmp_path / "cut")) == 3

    distill(cut, resume=True)
    whole = distill_recipe(student, teacher, annotation, tmp_path / "whole", cache=str(tmp_path / "cache"), **settings)
    distill(whole)
    first, second = (logged(tmp_path / name, STEPS, "loss") for name in ("cut", "whole"))
    assert len(first) == STEPS
    assert max(abs(one - other) for one, other in zip(first, second, strict=True)) <= 1e-5
