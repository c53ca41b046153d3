"""The text around the audio: template, task prompts, and the token ids before and after the audio embeddings."""

import random
from dataclasses import dataclass

from salmonrun.runtime.config import SPEECH_PLACEHOLDER, PromptConfig
from salmonrun.runtime.errors import PromptError, UnknownTaskError
from salmonrun.runtime.tokenizer import Tokenizer

SPEECH_MARK = f"<Speech>{SPEECH_PLACEHOLDER}</Speech>"


@dataclass(frozen=True)
class PromptIds:
    """Token ids on both sides of the audio embeddings. They are tokenized apart, as the published code does."""

    before: tuple[int, ...]  # the beginning symbol included
    after: tuple[int, ...]


def task_prompt(config: PromptConfig, task: str, rng: random.Random | None = None) -> str:
    """A prompt for `task`: its first one, or with `rng` any of them.

    Raises:
        UnknownTaskError: the checkpoint has no prompt for this task.
    """
    if task not in config.tasks:
        known = ", ".join(sorted(config.tasks)) or "none"
        raise UnknownTaskError(f"unknown task {task!r}; this model has prompts for: {known}; or pass prompt=")
    prompts = config.tasks[task]
    return rng.choice(prompts) if rng else prompts[0]


def choose_prompt(config: PromptConfig, task: str | None, prompt: str | None, question: str | None = None) -> str:
    """The instruction to use: exactly one of `task` and `prompt`, with `{}` filled by `question`.

    Raises:
        PromptError: neither or both are given, or the question is missing or superfluous.
    """
    if (task is None) == (prompt is None):
        raise PromptError(
            f"pass exactly one of task= and prompt=, got task={task!r}, prompt={prompt!r}; "
            f"tasks of this model: {', '.join(sorted(config.tasks)) or 'none'}"
        )
    text = prompt if prompt is not None else task_prompt(config, str(task))
    if task is None:
        if question is not None:
            raise PromptError("question= fills the {} of a task's prompt; with prompt= write the whole text")
        return text
    if ("{}" in text) != (question is not None):
        state = "needs question=, which fills its {}" if question is None else "takes no question="
        raise PromptError(f"the prompt of task {task!r} is {text!r}: it {state}")
    return text if question is None else text.replace("{}", question)


def prompt_halves(config: PromptConfig, prompt: str) -> tuple[str, str]:
    """The wrapped text before and after the audio; a prompt without the speech mark gets it in front.

    Raises:
        PromptError: the prompt has the placeholder more than once, or is empty.
    """
    if not prompt.strip():
        raise PromptError("the prompt is empty; write an instruction such as 'Describe the audio.'")
    if SPEECH_PLACEHOLDER not in prompt:
        prompt = f"{SPEECH_MARK} {prompt.strip()}"
    if prompt.count(SPEECH_PLACEHOLDER) != 1:
        raise PromptError(f"the prompt contains {SPEECH_PLACEHOLDER} more than once; one recording fits in a request")
    before, after = config.template.replace("{}", prompt).split(SPEECH_PLACEHOLDER)
    return before, after


def end_texts(config: PromptConfig, tokenizer: Tokenizer) -> tuple[str, ...]:
    """What ends an answer's text: the end symbol, where it is no stop token but text, as in the published stage-2 files
    for Llama 3. The published evaluator splits at it.
    """
    is_text = config.end_symbol != "" and tokenizer.token_id(config.end_symbol) not in config.stop_token_ids
    return (config.end_symbol,) if is_text else ()


def prompt_ids(config: PromptConfig, tokenizer: Tokenizer, prompt: str) -> PromptIds:
    """Token ids of the wrapped prompt on both sides of the audio."""
    before, after = prompt_halves(config, prompt)
    bos = () if config.bos_token_id is None else (config.bos_token_id,)
    return PromptIds((*bos, *tokenizer.encode(before)), tuple(tokenizer.encode(after)))
