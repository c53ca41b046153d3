"""Prompts: golden halves, and every rule about tasks, questions and the speech mark."""

import json
import random
from pathlib import Path

import pytest

from salmonrun.runtime.config import PromptConfig
from salmonrun.runtime.errors import PromptError, UnknownTaskError
from salmonrun.runtime.prompt import choose_prompt, prompt_halves, prompt_ids, task_prompt
from salmonrun.runtime.tokenizer import Tokenizer

MARK = "<Speech><SpeechHere></Speech>"
CONFIG = PromptConfig(
    tasks={
        "asr": (f"{MARK} Write it down.", f"{MARK} Transcribe."),
        "qa": (f"{MARK} Answer: {{}}",),
    }
)


@pytest.fixture(scope="module")
def tokenizer(golden: Path) -> Tokenizer:
    return Tokenizer(golden / "salmonn" / "llm" / "tokenizer.json")


def test_halves_are_the_published_codes(golden: Path, tokenizer: Tokenizer) -> None:
    expected = json.loads((golden / "salmonn" / "expected.json").read_text())
    template = expected["config"]["prompt_template"]
    config = PromptConfig(template=template, bos_token_id=expected["bos_token_id"])
    assert len(expected["tokens"]) == 2
    for wrapped, halves in expected["tokens"].items():
        start, end = template.split("{}")
        ids = prompt_ids(config, tokenizer, wrapped.removeprefix(start).removesuffix(end))
        assert ids.before == (512, *halves["before"])
        assert ids.after == tuple(halves["after"])


def test_no_bos(tokenizer: Tokenizer) -> None:
    config = PromptConfig(bos_token_id=None)
    assert prompt_ids(config, tokenizer, "Hi").before == tuple(tokenizer.encode("USER: <Speech>"))


def test_bos_0_is_a_bos(tokenizer: Tokenizer) -> None:
    assert prompt_ids(PromptConfig(bos_token_id=0), tokenizer, "Hi").before[0] == 0


# prompt_halves


def test_template_goes_around_the_prompt() -> None:
    config = PromptConfig(template="[INST] {} [/INST]")
    assert prompt_halves(config, "Listen: <SpeechHere> Now speak.") == ("[INST] Listen: ", " Now speak. [/INST]")


def test_missing_mark_is_put_in_front() -> None:
    assert prompt_halves(CONFIG, " Describe it.\n") == prompt_halves(CONFIG, f"{MARK} Describe it.")
    assert prompt_halves(CONFIG, "Describe it.") == ("USER: <Speech>", "</Speech> Describe it.\nASSISTANT:")


def test_braces_in_the_prompt_are_kept() -> None:
    assert prompt_halves(CONFIG, "Fill {} and {x} and {0}.")[1] == "</Speech> Fill {} and {x} and {0}.\nASSISTANT:"


@pytest.mark.parametrize("prompt", ["<SpeechHere><SpeechHere>", f"{MARK} and {MARK}"])
def test_two_placeholders(prompt: str) -> None:
    with pytest.raises(PromptError, match="<SpeechHere> more than once; one recording"):
        prompt_halves(CONFIG, prompt)


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
def test_empty_prompt(prompt: str) -> None:
    with pytest.raises(PromptError, match="the prompt is empty; write an instruction"):
        prompt_halves(CONFIG, prompt)


# choose_prompt


def test_a_task_is_its_first_prompt() -> None:
    assert choose_prompt(CONFIG, "asr", None) == f"{MARK} Write it down."


def test_training_draws_any_prompt_of_a_task() -> None:
    drawn = {task_prompt(CONFIG, "asr", random.Random(seed)) for seed in range(20)}
    assert drawn == set(CONFIG.tasks["asr"])


def test_a_prompt_is_taken_as_it_is() -> None:
    assert choose_prompt(CONFIG, None, "What {}?") == "What {}?"


@pytest.mark.parametrize("task", ["", "asr ", "translate"])
def test_unknown_task(task: str) -> None:
    with pytest.raises(UnknownTaskError) as caught:
        choose_prompt(CONFIG, task, None)
    assert str(caught.value) == f"unknown task {task!r}; this model has prompts for: asr, qa; or pass prompt="
    assert isinstance(caught.value, KeyError)


def test_unknown_task_of_a_model_without_tasks() -> None:
    with pytest.raises(UnknownTaskError, match="prompts for: none"):
        choose_prompt(PromptConfig(), "asr", None)


@pytest.mark.parametrize(("task", "prompt"), [(None, None), ("asr", "Hi"), ("asr", "")])
def test_exactly_one_of_task_and_prompt(task: str | None, prompt: str | None) -> None:
    with pytest.raises(PromptError, match="exactly one of task= and prompt=") as caught:
        choose_prompt(CONFIG, task, prompt)
    assert f"task={task!r}, prompt={prompt!r}" in str(caught.value)
    assert "asr, qa" in str(caught.value)


def test_a_question_fills_the_braces() -> None:
    assert choose_prompt(CONFIG, "qa", None, "Who speaks {0} {}?") == f"{MARK} Answer: Who speaks {{0}} {{}}?"


def test_other_braces_of_a_task_are_kept() -> None:
    config = PromptConfig(tasks={"qa": ('Answer as {"a": 0}: {}',)})
    assert choose_prompt(config, "qa", None, "Who?") == 'Answer as {"a": 0}: Who?'


def test_missing_question() -> None:
    with pytest.raises(PromptError, match=r"'qa'.*needs question="):
        choose_prompt(CONFIG, "qa", None)


def test_superfluous_question() -> None:
    with pytest.raises(PromptError, match=r"'asr'.*takes no question="):
        choose_prompt(CONFIG, "asr", None, "Who?")


def test_question_with_a_prompt() -> None:
    with pytest.raises(PromptError, match="write the whole text"):
        choose_prompt(CONFIG, None, "Answer: {}", "Who?")


def test_placeholder_in_a_question() -> None:
    with pytest.raises(PromptError, match="more than once"):
        prompt_halves(CONFIG, choose_prompt(CONFIG, "qa", None, "What is <SpeechHere>?"))
