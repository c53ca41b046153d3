"""What each layer does to what passes through it, in one pass over the recordings: nothing is left out for it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from salmonrun.training.model.labels import summed_loss
from salmonrun.training.pruning.calibration import Calibration
from salmonrun.training.pruning.layers import Gone, Part, layers_of, without


@dataclass(frozen=True)
class Observation:
    """Of a part with L layers. Lists of runs are [L][...]: that of n layers from layer i on stands at [n - 1][i]."""

    influence: list[list[float]]  # 1 - cosine of a run's input and output (Men et al. 2024, ShortGPT: block influence)
    angular: list[
        list[float]
    ]  # arccos of that / pi (Gromov et al. 2024, "The Unreasonable Ineffectiveness ...", eq. 2)
    taylor: list[float]  # of each layer: how the loss would change without it, to first order (see `_taylor`)


def observe(calibration: Calibration, part: Part, gone: Gone, done: Callable[[], object] = lambda: None) -> Observation:
    """Look into the layers that stay of a part.

    Influence is averaged over all positions. The angle is averaged, of an LLM, over the positions that predict the
    answer (Gromov et al. take the last one, which here has only the end symbol to predict), and over all of an encoder.

    Args:
        calibration: model and recordings.
        part: whose layers.
        gone: layers that the model goes without; those of `part` have no place in the result.
        done: called behind each recording.
    """
    every = layers_of(calibration.model, part)
    layers = [layer for i, layer in enumerate(every) if i not in set(gone.get(part, ()))]
    cosines, angles, taylor = _Mean(), _Mean(), _Mean()
    for entry in calibration.entries:
        with without(calibration.model, gone), _watched(layers) as states, torch.enable_grad():
            logits, wanted, tokens = calibration.logits(entry, gone, part)
            (summed_loss(logits, wanted) / tokens).backward()
        taylor.add(_taylor(states)[:, None])
        hidden = torch.stack([state.detach()[0].float() for state in states])  # [L + 1, T, D]
        pairs = _cosines(hidden)
        cosines.add(pairs.flatten(0, 1))
        aimed = pairs[..., -1 - tokens : -1] if part == "llm" else pairs
        angles.add(aimed.clamp(-1, 1).arccos().flatten(0, 1) / math.pi)
        done()
    count = len(layers)
    return Observation(
        _by_run(1 - cosines.value.view(count + 1, count + 1), count),
        _by_run(angles.value.view(count + 1, count + 1), count),
        taylor.value.tolist(),
    )


class _Mean:
    """Of each row over all columns that were added."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count = 0

    def add(self, values: Tensor) -> None:
        """Values [rows, n]."""
        self._sum = self._sum + values.double().sum(dim=1).cpu()
        self._count += values.shape[1]

    @property
    def value(self) -> Tensor:
        """[rows]."""
        return torch.as_tensor(self._sum) / self._count


@contextmanager
def _watched(layers: list[nn.Module]) -> Iterator[list[Tensor]]:
    """What goes into the first layer and comes out of each, as a model runs: L + 1 tensors [1, T, D] with gradients."""
    states: list[Tensor] = []

    def begin(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        states.append(inputs[0].detach().requires_grad_())  # weights are frozen: gradients begin here
        return states[0], *inputs[1:]

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        output.retain_grad()
        states.append(output)

    hooks = [layers[0].register_forward_pre_hook(begin), *(layer.register_forward_hook(keep) for layer in layers)]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def _taylor(states: list[Tensor]) -> Tensor:
    """|sum of dL/dy * (y - x)| of each layer x -> y: [L].

    Molchanov et al. 2017 ("Pruning Convolutional Neural Networks for Resource Efficient Inference", eq. 7) with a
    gate on what the layer adds: its derivative is how the loss changes without it. No weight needs a gradient.
    """
    changes = []
    for before, after in pairwise(states):
        assert after.grad is not None, "retain_grad"
        changes.append((after.grad.double() * (after - before).detach().double()).sum().abs())
    return torch.stack(changes)


def _cosines(hidden: Tensor) -> Tensor:
    """[L + 1, T, D] -> [L + 1, L + 1, T]: of the states before and behind every run of layers, in float64.

    In float32 a layer that changes nothing would seem to change as much as one that changes little.
    """
    unit = nn.functional.normalize(hidden.double(), dim=-1)
    return torch.einsum("itd,jtd->ijt", unit, unit)


def _by_run(pairs: Tensor, count: int) -> list[list[float]]:
    """[L + 1, L + 1] -> for n = 1 to L, the values of the runs of n layers from each layer on."""
    return [pairs.diagonal(offset=n).tolist() for n in range(1, count + 1)]
