"""How a converted model is prompted: the file's template and end symbol, published task prompts, the LLM's tokens."""

from pathlib import Path
from typing import Any

from salmonrun.runtime.config import SPEECH_PLACEHOLDER, PromptConfig
from salmonrun.runtime.errors import CheckpointError
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.starting.chat import read_bos, read_end_symbol, read_eos, stop_ids
from salmonrun.training.starting.presets import TASKS
from salmonrun.training.tensors import read_json


def prompt_config(
    llm: Path,
    llm_config: dict[str, Any],
    tokenizer: Tokenizer,
    options: dict[str, Any],
    prompts: Path | None,
    end_symbol: str | None,
) -> tuple[PromptConfig, list[str]]:
    """The prompt's settings, and warnings.

    Args:
        llm: the LLM's folder.
        llm_config: its config.json.
        tokenizer: its tokenizer.
        options: the .pth's own settings.
        prompts: a published prompt JSON; None for our own prompts.
        end_symbol: None for the file's own `end_sym`, or where it has none, the tokenizer's.
    """
    warnings = []
    if end_symbol is not None:
        end, stops = end_symbol, stop_ids(llm, llm_config, tokenizer, end_symbol)
    else:
        end = str(options.get("end_sym") or read_end_symbol(llm, tokenizer))
        stops = tuple(read_eos(llm, llm_config))
        if (token := tokenizer.token_id(end)) is not None:
            stops = tuple(dict.fromkeys([token, *stops]))
        elif stops:  # the published stage-2 files for Llama 3 were trained with "</s>", which is plain text there
            warnings.append(
                f"end_sym {end!r} is no token of this tokenizer: answers stop at tokens {list(stops)}, and their text "
                f"ends where it says {end!r}; to have them end at a token, name one: --end-symbol"
            )
        else:
            raise CheckpointError(
                f"end_sym {end!r} is no token of the tokenizer, and {llm} names no eos_token_id: pass --end-symbol"
            )
    config = PromptConfig(
        template=str(options.get("prompt_template", "USER: {}\nASSISTANT:")),
        tasks=read_prompts(prompts) if prompts else TASKS,
        bos_token_id=read_bos(llm, llm_config, tokenizer),
        stop_token_ids=stops,
        end_symbol=end,
    )
    return config, warnings


def read_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """A published prompt JSON: task -> prompt or prompts, word for word; those without the placeholder are refused."""
    tasks = {}
    for task, value in read_json(path).items():
        prompts = tuple(value) if isinstance(value, list) else (value,)
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise CheckpointError(f"{path}: task {task!r} is {value!r}; expected a prompt or a list of prompts")
        bad = [prompt for prompt in prompts if SPEECH_PLACEHOLDER not in prompt]
        if bad:
            raise CheckpointError(f"{path}: task {task!r} has a prompt without {SPEECH_PLACEHOLDER}: {bad[0]!r}")
        tasks[task] = prompts
    return tasks
