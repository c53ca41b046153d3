"""AdamW, or Muon where it applies, and their rate."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from salmonrun.training.finetuning.recipe import RunConfig

# Looked up or a head rather than multiplied with hidden states: Muon is not made for these (Jordan et al. 2024).
NOT_FOR_MUON = ("embed", "lm_head", "ctc_head", "query_tokens", "relative_attention_bias", "lora_")


def make_optimizer(model: nn.Module, run: RunConfig) -> torch.optim.Optimizer:
    """The recipe's optimizer, without decay on vectors."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    hidden = [p for name, p in trained.items() if run.optimizer == "muon" and _suits_muon(name, p)]
    matrices = [p for p in trained.values() if p.ndim >= 2 and not any(p is h for h in hidden)]
    groups = [
        {"params": matrices, "weight_decay": run.weight_decay},
        {"params": [p for p in trained.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=run.lr, betas=run.betas)
    if hidden:
        optimizer = Pair(
            # Updates as long as AdamW's: one rate serves both (Liu et al. 2025, "Muon is scalable for LLM training").
            torch.optim.Muon(hidden, lr=run.lr, weight_decay=run.weight_decay, adjust_lr_fn="match_rms_adamw"),
            optimizer,
        )
    return optimizer


def make_scheduler(optimizer: torch.optim.Optimizer, run: RunConfig) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up, then a cosine to min_lr, per step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_share(step, run))


def _suits_muon(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and not any(part in name for part in NOT_FOR_MUON)


class Pair(torch.optim.Optimizer):
    """Two optimizers, each with parameters of its own, as one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self._both = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """A scheduler that sets a rate here sets it there."""
        self.param_groups = [group for optimizer in self._both for group in optimizer.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both; the closure, if there is one, is called once."""
        loss = closure() if closure else None
        for optimizer in self._both:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of the two optimizers."""
        return {"both": [optimizer.state_dict() for optimizer in self._both]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the two optimizers."""
        for optimizer, state in zip(self._both, state_dict["both"], strict=True):
            optimizer.load_state_dict(state)
        self._share_groups()


def lr_share(step: int, run: RunConfig) -> float:
    """The rate at a step, as a share of run.lr: warm-up, then a cosine to run.min_lr."""
    if step < run.warmup_steps:
        return (step + 1) / run.warmup_steps
    progress = min(1.0, (step - run.warmup_steps) / max(1, run.steps - run.warmup_steps))
    floor = run.min_lr / run.lr
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
