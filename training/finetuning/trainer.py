"""transformers' Trainer with our batches, snapshots, clipping and validation."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import rotate_checkpoints

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.data.dataset import BucketSampler, collate_examples
from salmonrun.training.finetuning.optimizer import make_optimizer, make_scheduler
from salmonrun.training.finetuning.recipe import Recipe
from salmonrun.training.finetuning.snapshots import NORMS_FILE, PARTIAL, STATE_FILE, TRAINED_FILE, publish
from salmonrun.training.finetuning.validation import Validation


class RecipeTrainer(transformers.Trainer):
    """Trainer for a recipe. Snapshots hold only what is trained.

    Args:
        recipe: the run.
        validation: measured at every snapshot; None for no validation.
        kwargs: of transformers' Trainer; the model is a TrainedModel.
    """

    def __init__(self, recipe: Recipe, validation: Validation | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._recipe = recipe
        self._validation = validation
        self._loss_terms: defaultdict[str, list[Tensor]] = defaultdict(list)  # since the last log
        self._norms: list[float] = []  # of all steps so far, for clipping by a percentile
        self._saving = False
        self.model_accepts_loss_kwargs = True  # forward divides by the tokens of all accumulated batches

    # Trainer makes these once the model is where it will be trained.
    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW or Muon, as the recipe says."""
        self.optimizer = make_optimizer(model or self.model, self._recipe.run)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The recipe's rates, over as many steps."""
        assert num_training_steps == self._recipe.run.steps
        self.lr_scheduler = make_scheduler(optimizer or self.optimizer, self._recipe.run)
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader:
        """Batches of similar lengths, enough for the whole run."""
        run, dataset = self._recipe.run, self.train_dataset
        sampler = BucketSampler(
            dataset.lengths,
            dataset.weights,
            run.batch_size,
            run.steps * run.accumulate * self.args.world_size,
            run.seed,
        )
        loader: DataLoader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate_examples,
            num_workers=run.workers,
            persistent_workers=run.workers > 0,
        )
        return self.accelerator.prepare(loader)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss; its terms are kept for the next log."""
        loss, outputs = super().compute_loss(model, inputs, *args, **kwargs | {"return_outputs": True})
        for name, value in outputs.items():
            if name != "loss":
                self._loss_terms[name].append(value)
        return (loss, outputs) if kwargs.get("return_outputs") else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the mean of each term of the loss over the batches of all processes: each in its own unit."""
        if "loss" in logs:  # which every process logs at the same steps, with the same terms
            means = {name: torch.stack(values).mean() for name, values in self._loss_terms.items()}
            logs |= {name: self.accelerator.reduce(mean, "mean").item() for name, mean in means.items()}
            self._loss_terms.clear()
        super().log(logs, *args, **kwargs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the validation data; every process measures all of it."""
        assert self._validation is not None
        with self.accelerator.autocast():
            metrics = self._validation.measure()
        self.log(dict(metrics))
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Trainer's hook: the norm before clipping."""
        percentile = self._recipe.run.clip_percentile
        if percentile is None:
            return super()._clip_grad_norm(model)
        norm = self.accelerator.clip_grad_norm_(model.parameters(), math.inf)
        if math.isfinite(float(norm)):
            self._norms.append(float(norm))
            limit = float(np.percentile(self._norms, percentile))
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)
        return norm

    # Trainer's hooks for where a snapshot is written and what it holds.
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write it beside its place and rename it: a run that is killed meanwhile leaves no half of one."""
        out, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        self._saving = True
        super()._save_checkpoint(model, trial)
        self._saving = False
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(out / name)
        self.accelerator.wait_for_everyone()  # each process has a file of its own in it
        if self.args.should_save:
            self.state.save_to_json(str(out / PARTIAL / name / STATE_FILE))
            publish(out / PARTIAL / name, out / name)
            kept = self.state.best_model_checkpoint
            rotate_checkpoints(str(out), self.args.save_total_limit, best_model_checkpoint=kept, use_mtime=True)

    def _get_output_dir(self, trial: Any) -> str:
        out = super()._get_output_dir(trial)
        return str(Path(out) / PARTIAL) if self._saving else out

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        trained = trained_state(self.accelerator.unwrap_model(self.model))
        if state_dict is not None:  # gathered from several processes
            trained = {name: state_dict[name] for name in trained}
        torch.save(trained, folder / TRAINED_FILE)
        (folder / NORMS_FILE).write_text(json.dumps(self._norms))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_trained(self.accelerator.unwrap_model(model or self.model), folder)
        self._norms = json.loads((folder / NORMS_FILE).read_text())


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes."""
    return {name: value.data for name, value in model.named_parameters() if value.requires_grad}


def load_trained(model: nn.Module, snapshot: str | Path) -> None:
    """Fill them from a snapshot.

    Raises:
        CheckpointError: the snapshot is of a run that trained other parts.
    """
    state = torch.load(Path(snapshot) / TRAINED_FILE, map_location="cpu", weights_only=True)
    target = trained_state(model)
    other = sorted(name for name in state.keys() | target.keys() if not _alike(state.get(name), target.get(name)))
    if other:
        raise CheckpointError(
            f"{snapshot} is of a run that trained other parts: {len(other)} tensors are in one alone or differ in "
            f"shape, such as {other[0]}; go on with the recipe it was made with"
        )
    with torch.no_grad():
        for name, value in state.items():
            target[name].copy_(value)


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape


class MeasureLast(transformers.TrainerCallback):
    """The last snapshot is measured too, where save_every does not divide the steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a measurement at the last step."""
        if state.global_step >= args.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True
