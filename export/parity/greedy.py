"""PyTorch's own greedy answers to many prompts in a few passes over the LLM's weights, which are read for each."""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from salmonrun.export.parity.layers import LayeredLlm
from salmonrun.export.progress import Progress
from salmonrun.runtime.prompt import PromptIds
from salmonrun.training.checkpoint import Checkpoint

F32 = npt.NDArray[np.float32]
MOST_TOKENS = 24  # of an answer
PASSES = 4


@dataclass(frozen=True)
class Question:
    """A prompt about a recording, and what the answer may be."""

    prompt: PromptIds
    audio_embeds: F32  # [N, dim]
    guess: list[int]  # MOST_TOKENS tokens


@dataclass(frozen=True)
class GreedyAnswer:
    """The beginning of PyTorch's answer."""

    tokens: list[int]
    logits: F32  # [n, V] before each


def greedy_answers(
    source: Checkpoint, questions: Sequence[Question], stops: Set[int], progress: Progress
) -> list[GreedyAnswer]:
    """Decode all at once: each pass chooses the token at every position, after what the last pass chose before it.

    A choice is greedy search's own where all that is before it has not changed (Santilli et al. 2023, Jacobi decoding),
    so that a pass settles one more token of every answer at least, and all of one that was guessed. An answer is as
    long as it is settled after PASSES, or up to its first stop token.
    """
    llm = LayeredLlm(source)
    prompts = [_embedded(llm, question) for question in questions]
    guesses = [question.guess for question in questions]
    with progress.weights("PyTorch's answers", PASSES * llm.size) as llm.progress:
        for _ in range(PASSES):
            rows = [torch.cat([prompt, llm.embed(g[:-1])]) for prompt, g in zip(prompts, guesses, strict=True)]
            logits = llm.logits(rows, last=MOST_TOKENS).numpy()
            found = logits.argmax(axis=-1).tolist()
            settled = [_settled(guess, row, stops) for guess, row in zip(guesses, found, strict=True)]
            if all(n == MOST_TOKENS or row[n - 1] in stops for n, row in zip(settled, found, strict=True)):
                break
            guesses = found
    return [GreedyAnswer(row[:n], each[:n]) for n, row, each in zip(settled, found, logits, strict=True)]


def _embedded(llm: LayeredLlm, question: Question) -> torch.Tensor:
    """[P, dim]."""
    before, after = llm.embed(question.prompt.before), llm.embed(question.prompt.after)
    return torch.cat([before, torch.from_numpy(question.audio_embeds), after])


def _settled(guess: Sequence[int], found: Sequence[int], stops: Set[int]) -> int:
    """How many tokens, up to a stop token, were found after nothing but what was found."""
    for position, token in enumerate(found):
        if token in stops or token != guess[position]:
            return position + 1
    return len(found)
