"""Logits processors and sampling against transformers' own."""

import random

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.logits import (
    ban_repeated_ngrams,
    log_softmax,
    penalize_repetition,
    process,
    sampling_distribution,
)

# Processors


@pytest.mark.parametrize("seed", range(30))
def test_processors_are_those_of_transformers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocab_size = 12
    scores = rng.normal(0, 3, vocab_size).astype(np.float32)
    generated = rng.integers(0, vocab_size, rng.integers(0, 30)).tolist()
    ids, batch = torch.tensor([generated], dtype=torch.long), torch.from_numpy(scores)[None]
    for penalty in (0.7, 1.3, 1.5):
        expected = hf.RepetitionPenaltyLogitsProcessor(penalty)(ids, batch.clone())[0]
        found = process(scores, generated, GenerationConfig(repetition_penalty=penalty), [])
        np.testing.assert_array_equal(found, expected)
        if generated:
            np.testing.assert_array_equal(penalize_repetition(scores, generated, penalty), expected)
    for size in (1, 2, 3):
        expected = hf.NoRepeatNGramLogitsProcessor(size)(ids, batch.clone())[0]
        np.testing.assert_array_equal(ban_repeated_ngrams(scores, generated, size), expected)
    for minimum in (1, 5, 20):
        expected = hf.MinNewTokensLengthLogitsProcessor(0, minimum, [0, 3])(ids, batch.clone())[0]
        np.testing.assert_array_equal(
            process(scores, generated, GenerationConfig(min_new_tokens=minimum), [0, 3]), expected
        )


def test_nothing_is_said_by_who_is_sure_of_it() -> None:
    """Of the first token alone, by its probability: of logits, and of log probabilities."""
    probabilities = np.array([0.05, 0.85, 0.1], np.float32)
    for scores in (np.log(probabilities), np.log(probabilities) + 3):
        for threshold, banned in ((0.0, False), (0.8, False), (0.9, True), (1.0, True)):
            config = GenerationConfig(nothing_threshold=threshold)
            expected = np.where([False, banned, False], -np.inf, scores).astype(np.float32)
            np.testing.assert_array_equal(process(scores, [], config, [], nothing_id=1), expected)
            np.testing.assert_array_equal(process(scores, [2], config, [], nothing_id=1), scores)
            np.testing.assert_array_equal(process(scores, [], config, []), scores)


def test_processors_leave_their_input_alone() -> None:
    scores = np.arange(5, dtype=np.float32)
    config = GenerationConfig(repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=9)
    assert not np.array_equal(process(scores, [1, 2, 1], config, [4]), scores)
    np.testing.assert_array_equal(scores, np.arange(5))


@pytest.mark.parametrize("seed", range(5))
def test_log_softmax_is_torchs(seed: int) -> None:
    scores = np.random.default_rng(seed).normal(0, 8, (3, 500)).astype(np.float32)
    expected = torch.log_softmax(torch.from_numpy(scores), dim=-1)
    np.testing.assert_allclose(log_softmax(scores), expected, rtol=1e-6, atol=1e-6)


# Sampling


def their_distribution(scores: F32, config: GenerationConfig) -> F32:
    batch = hf.TemperatureLogitsWarper(config.temperature)(None, torch.from_numpy(scores)[None])
    if config.top_k:
        batch = hf.TopKLogitsWarper(config.top_k)(None, batch)
    if config.top_p < 1:
        batch = hf.TopPLogitsWarper(config.top_p)(None, batch)
    return batch.softmax(dim=-1)[0].numpy()


@pytest.fixture
def stable_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.sort leaves the order of ties open, and with it which of them top_p drops."""
    sort = torch.sort
    monkeypatch.setattr(torch, "sort", lambda values, descending: sort(values, descending=descending, stable=True))


@pytest.mark.usefixtures("stable_sort")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_sampling_distribution_is_that_of_transformers(seed: int, tied: bool) -> None:
    rng, pick = np.random.default_rng(seed), random.Random(seed)
    scores = rng.normal(0, 3, pick.choice((2, 7, 50))).astype(np.float32)
    if tied:
        scores = np.round(scores)
    config = GenerationConfig(
        do_sample=True,
        temperature=pick.choice((0.3, 0.8, 1.0, 1.7)),
        top_k=pick.choice((0, 1, 3, 5, 60)),
        top_p=pick.choice((1.0, 0.97, 0.9, 0.55, 0.2, 0.01)),
    )
    found = sampling_distribution(scores, config)
    np.testing.assert_allclose(found, their_distribution(scores, config), atol=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("vocab_size", [2, 4, 8])
@pytest.mark.parametrize("top_p", [0.25, 0.5, 0.75, 1e-20])
def test_top_p_on_the_border(vocab_size: int, top_p: float) -> None:
    """Sums of equal probabilities that hit 1 - top_p exactly; and one token is always kept."""
    scores, config = np.zeros(vocab_size, np.float32), GenerationConfig(do_sample=True, top_p=top_p)
    np.testing.assert_allclose(sampling_distribution(scores, config), their_distribution(scores, config), atol=1e-6)


def test_banned_tokens_are_never_sampled() -> None:
    scores = np.array([1.0, -np.inf, 0.5, -np.inf], np.float32)
    for config in (GenerationConfig(do_sample=True), GenerationConfig(do_sample=True, top_k=3, top_p=0.9)):
        np.testing.assert_array_equal(sampling_distribution(scores, config)[[1, 3]], 0)
