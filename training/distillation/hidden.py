"""Hidden states of a student beside those of its teacher: which layers are compared, where, and how."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from salmonrun.runtime.errors import ConfigError
from salmonrun.training.finetuning.objective import Outputs
from salmonrun.training.model.blocks import valid_positions
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.model.labels import IGNORE
from salmonrun.training.model.salmonn import SalmonnModel
from salmonrun.training.pruning.layers import Part, count_layers, layers_of, parts_of
from salmonrun.training.pruning.removal import whole_layers

Hidden = Mapping[Part, list[Tensor]]  # of each part, what comes out of its layers: each [B, T, D]


def layer_map(student: ModelConfig, teacher: ModelConfig, part: Part) -> tuple[int, ...]:
    """For each layer of the student, the teacher's layer whose output it should have.

    Where both are what is left of the same number of layers, by their recorded numbers: a layer stands for itself and
    for those that were left out behind it, so what it gives is what the next one that was kept is used to get. Else
    both are cut into equal shares (TinyBERT, Jiao et al. 2020). Either way the last one has the last.

    Raises:
        ConfigError: the student has more layers than the teacher.
    """
    (whole, kept), (whole_of_teacher, there) = whole_layers(student, part), whole_layers(teacher, part)
    if whole == whole_of_teacher and set(kept) <= set(there):
        ends = [*kept[1:], whole]
        return tuple(max(i for i, number in enumerate(there) if number < end) for end in ends)
    count, layers = len(kept), len(there)
    if count > layers:
        raise ConfigError(
            f"the student's {part} has {count} layers, the teacher's {layers}: hidden states of a smaller teacher "
            "cannot be learned; leave the part out of distill.hidden_parts"
        )
    return tuple((i + 1) * layers // count - 1 for i in range(count))


@contextmanager
def watched(model: SalmonnModel, parts: Sequence[Part]) -> Iterator[dict[Part, list[Tensor]]]:
    """What comes out of the layers of these parts as the model runs, in their order."""
    states: dict[Part, list[Tensor]] = {part: [] for part in parts}
    with ExitStack() as stack:
        for part in parts:
            for layer in layers_of(model, part):
                stack.callback(layer.register_forward_hook(_keep(states[part])).remove)
        yield states


def _keep(states: list[Tensor]) -> Any:
    def keep(_: nn.Module, __: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    return keep


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows [N, D] of |student - teacher|² / |teacher|²: a state of any scale counts as much."""
    teacher = teacher.float()
    error = (student.float() - teacher).square().sum(dim=-1) / teacher.square().sum(dim=-1).clamp_min(1e-12)
    return error.mean()


def aligned(hidden: Tensor, part: Part, outputs: Outputs) -> Tensor:
    """The states of a layer [B, T, D] that are compared: [N, D].

    Of an encoder, of all frames that a recording has; of the LLM, where tokens of the answer are predicted, since what
    comes before may be another prompt.
    """
    if part == "llm":
        assert outputs.wanted is not None, "the LLM has run"
        columns = len(outputs.wanted) // len(hidden)  # of logits, which are behind the first answer's place on
        return hidden[:, -columns - 1 : -1].flatten(0, 1)[outputs.wanted != IGNORE]
    counts = outputs.states.frames if part == "whisper" else outputs.states.audio_tokens
    return hidden[valid_positions(counts.to(hidden.device), hidden.shape[1])]


class HiddenLoss(nn.Module):
    """The relative error of a student's hidden states, behind a learned projection where widths differ."""

    def __init__(self, student: ModelConfig, teacher: ModelConfig, parts: Sequence[Part]) -> None:
        super().__init__()
        self.maps = {part: layer_map(student, teacher, part) for part in parts}
        widths = {part: (_width(student, part), _width(teacher, part)) for part in parts}
        self.projections = nn.ModuleDict(
            {
                part: nn.ModuleList(nn.Linear(*widths[part]) for _ in range(count_layers(student, part)))
                for part in parts
                if widths[part][0] != widths[part][1]
            }
        )

    def forward(self, student: tuple[Hidden, Outputs], teacher: tuple[Hidden, Outputs]) -> Tensor:
        """Mean over layers of the mean over positions, of each part; summed over parts."""
        total = torch.zeros((), device=student[1].states.speech.device)
        for part, numbers in self.maps.items():
            errors = [
                relative_error(
                    self._projected(aligned(student[0][part][layer], part, student[1]), part, layer),
                    aligned(teacher[0][part][number], part, teacher[1]),
                )
                for layer, number in enumerate(numbers)
            ]
            total = total + torch.stack(errors).mean()
        return total

    def _projected(self, states: Tensor, part: Part, layer: int) -> Tensor:
        if part not in self.projections:
            return states
        layers = self.projections[part]
        assert isinstance(layers, nn.ModuleList)
        projected: Tensor = layers[layer](states.float())
        return projected


def check_parts(student: ModelConfig, teacher: ModelConfig, parts: Sequence[Part]) -> None:
    """Both have them.

    Raises:
        ConfigError: one has no audio encoder.
    """
    for config, name in ((student, "student"), (teacher, "teacher")):
        missing = [part for part in parts if part not in parts_of(config)]
        if missing:
            raise ConfigError(f"distill.hidden_parts has {missing[0]}, and the {name} has none; leave it out")


def _width(config: ModelConfig, part: Part) -> int:
    if part == "llm":
        return config.llm_dim
    if part == "whisper":
        return config.whisper.d_model
    assert config.audio_encoder is not None, "check_parts refuses it"
    return config.audio_encoder.dim
