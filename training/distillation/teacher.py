"""The teacher: a checkpoint that is asked for what it makes of recordings and of the answers that are to be given."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from salmonrun.runtime.prompt import choose_prompt, prompt_ids
from salmonrun.training.checkpoint import load
from salmonrun.training.data.annotation import Entry
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.distillation.hidden import Hidden, watched
from salmonrun.training.finetuning.objective import Outputs
from salmonrun.training.model.features import collate
from salmonrun.training.pruning.layers import Part


@dataclass(frozen=True)
class Lesson:
    """What the teacher makes of a batch."""

    outputs: Outputs
    hidden: Hidden  # of the parts that were asked for


class Teacher:
    """A frozen model. It is no module of the student's: nothing trains, saves or shares it out.

    It hears every recording as it is, all of it at once and through its own front end, and is asked by its own first
    prompt of the task: what it says does not depend on what is done to the student's recordings.

    Args:
        checkpoint: a folder that has been verified.
        dtype: of the LLM, and of all products.
    """

    def __init__(self, checkpoint: str | Path, dtype: torch.dtype) -> None:
        self._model = load(checkpoint, verify=False, dtype=dtype).requires_grad_(False).eval()
        self._dtype = dtype

    @torch.no_grad()
    def teach(
        self,
        entries: Sequence[Entry],
        targets: Sequence[Sequence[int]],
        device: torch.device,
        parts: Sequence[Part] = (),
    ) -> Lesson:
        """Run the teacher on recordings and the answers to them.

        Args:
            entries: the recordings, and what is asked about them.
            targets: tokens of each answer, the end symbol's with them.
            device: where to compute.
            parts: whose hidden states are wanted.

        Raises:
            CheckpointError: a recording cannot be used.
            PromptError: the teacher has no prompt for a task.
        """
        model = self._model.to(device)
        prompts = [
            prompt_ids(
                model.prompts,
                model.tokenizer,
                choose_prompt(model.prompts, entry.task, None, entry.question or None),
            )
            for entry in entries
        ]
        features = [model.features(load_recording(entry, model.config.audio)) for entry in entries]
        with (
            watched(model, parts) as hidden,
            torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32),
        ):
            states = model.states(collate(features))
            embeds = model.fuse(states)
            logits, wanted = model.answer_logits(embeds, prompts, targets)
        return Lesson(Outputs(states, embeds, logits, wanted), hidden)
