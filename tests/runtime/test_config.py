"""Settings refuse what cannot work, and say what would."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salmonrun.runtime.config import AudioConfig, GenerationConfig, PromptConfig, WindowConfig
from salmonrun.runtime.errors import ConfigError


def test_defaults_are_greedy() -> None:
    config = GenerationConfig()
    assert (config.num_beams, config.do_sample, config.max_new_tokens) == (1, False, 200)
    assert config.stop_token_ids is None


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 1},
        {"num_beams": 4, "early_stopping": True},
        {"num_beams": 4, "early_stopping": "never", "length_penalty": -1.0},
        {"do_sample": True, "temperature": 0.1, "top_k": 5, "top_p": 1.0, "seed": 3},
        {"min_new_tokens": 200},
        {"stop_token_ids": (), "stop_strings": ("\n",)},
        {"repetition_penalty": 0.5, "no_repeat_ngram_size": 3},
    ],
    ids=str,
)
def test_what_works_is_accepted(options: dict[str, Any]) -> None:
    config = GenerationConfig(**options)
    assert all(getattr(config, name) == value for name, value in options.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"max_new_tokens": -5}, "max_new_tokens is -5; it must be at least 1"),
        ({"num_beams": 0}, "num_beams is 0; it must be at least 1"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1; expected 0 to 200"),
        ({"min_new_tokens": 11, "max_new_tokens": 10}, "min_new_tokens is 11; expected 0 to 10"),
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0.0; it must be above 0 (for greedy"),
        ({"do_sample": True, "temperature": -1.0}, "temperature is -1.0; it must be above 0"),
        ({"do_sample": True, "temperature": math.nan}, "temperature is nan; expected a finite number"),
        ({"do_sample": True, "top_p": 0.0}, "top_p is 0.0; expected 0 < top_p <= 1"),
        ({"do_sample": True, "top_p": 1.5}, "top_p is 1.5; expected 0 < top_p <= 1"),
        ({"do_sample": True, "top_k": -1}, "top_k is -1; it must not be negative (0 turns it off)"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1; it must not be negative"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be above 0 (1 turns it off)"),
        ({"repetition_penalty": math.nan}, "repetition_penalty is nan; expected a finite number"),
        ({"do_sample": True, "num_beams": 2}, "do_sample with num_beams > 1 is not supported; choose one"),
        ({"temperature": 0.7}, "temperature, top_k and top_p have no effect without do_sample=True"),
        ({"top_k": 5}, "temperature, top_k and top_p have no effect without do_sample=True"),
        ({"top_p": 0.9}, "temperature, top_k and top_p have no effect without do_sample=True"),
        ({"early_stopping": "always"}, "early_stopping is 'always'; expected True, False or 'never'"),
        ({"stop_strings": ("x", "")}, "stop_strings has an empty text"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GenerationConfig(**options)
    assert str(caught.value).startswith(message)


def test_stop_strings_is_not_one_string() -> None:
    """A string is a sequence of strings too: each of its letters would end the answer."""
    with pytest.raises(ConfigError, match="stop_strings"):
        GenerationConfig(stop_strings="END")  # type: ignore[arg-type]


def test_negative_stop_token_is_refused() -> None:
    """It would index the logits from their end: min_new_tokens would ban another token."""
    with pytest.raises(ConfigError, match="stop_token_ids"):
        GenerationConfig(stop_token_ids=(-1,))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_length_penalty_is_finite(value: float) -> None:
    with pytest.raises(ConfigError, match=f"length_penalty is {value}"):
        GenerationConfig(num_beams=2, length_penalty=value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_mels": 64}, "n_mels is 64; Whisper encoders take 80 or 128"),
        ({"sample_rate": 8000}, "sample_rate is 8000; the encoders take 16000"),
        ({"min_s": 0.0}, "min_s 0.0 and max_s 30.0 must satisfy 0 < min_s <= max_s"),
        ({"min_s": 31.0}, "min_s 31.0 and max_s 30.0 must satisfy 0 < min_s <= max_s"),
        ({"max_s": math.nan}, "min_s 1.0 and max_s nan must satisfy"),
    ],
    ids=str,
)
def test_audio_config(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AudioConfig(**options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (17, -17, 1), (2**16 + 1, 1, 1)])
def test_window_config(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"(frames|stride|num_queries) is -?\d+; expected 1 to 65536"):
        WindowConfig(*sizes)


@given(st.integers(0, 2000), st.integers(1, 60), st.integers(1, 60))
def test_windows_are_counted_as_they_are_cut(total: int, frames: int, stride: int) -> None:
    starts = [start for start in range(0, total, stride) if start + frames <= total]
    assert WindowConfig(frames, stride).count(total) == len(starts)


def test_published_window_count() -> None:
    assert WindowConfig().count(1500) == 88


@pytest.mark.parametrize("template", ["", "USER:", "{} and {}"])
def test_template_needs_one_place(template: str) -> None:
    with pytest.raises(ConfigError, match=r"must contain \{\} exactly once"):
        PromptConfig(template=template)


def test_task_without_prompts() -> None:
    with pytest.raises(ConfigError, match="task 'asr' has no prompt"):
        PromptConfig(tasks={"asr": ()})
