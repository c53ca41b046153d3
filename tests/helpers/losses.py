"""The loss of the model itself, apart from any training loop."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from salmonrun.runtime.audio import Audio
from salmonrun.runtime.config import Block
from salmonrun.runtime.prompt import prompt_ids
from salmonrun.training.model.salmonn import SalmonnModel


class Answer(NamedTuple):
    """What is said of a recording when it is prompted so."""

    audio: Audio
    prompt: str
    text: str


def mean_loss(model: SalmonnModel, answers: Sequence[Answer], block: Block | None = None) -> Tensor:
    """Mean cross-entropy of the answers' tokens, end symbol included."""
    embeds = model.encode_batch([answer.audio for answer in answers], block)
    prompts = [prompt_ids(model.prompts, model.tokenizer, answer.prompt) for answer in answers]
    targets = [model.tokenizer.encode(answer.text + model.prompts.end_symbol) for answer in answers]
    return model.answer_loss(embeds, prompts, targets) / sum(map(len, targets))
