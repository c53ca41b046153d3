"""Search against transformers' `generate`, token for token, and sampling on a fake decoder."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salmonrun.runtime.beam_search import top_k
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.logits import sample, sampling_distribution
from salmonrun.runtime.search import StopRules
from tests.helpers.fakes import FakeDecoder, random_logits
from tests.helpers.searches import TorchDecoder, our_tokens, prompt_embeds, their_tokens, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore:Passing .* with `inputs_embeds`:UserWarning")


def random_case(seed: int, vocab_sizes: tuple[int, ...]) -> tuple[int, GenerationConfig, StopRules]:
    """(vocabulary, settings, stop rules); greedy in one case of four."""
    pick = random.Random(seed)
    vocab_size = pick.choice(vocab_sizes)
    stop_ids = pick.sample(range(vocab_size), pick.choice((0, 1, 2, 3)))
    if stop_ids and pick.random() < 0.3:
        stop_ids[0] = 0
    max_new_tokens = pick.randint(1, 20)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=pick.choice((0, 0, min(4, max_new_tokens))),
        num_beams=pick.choice((1, 2, 3, 4, 5, 6)) if pick.random() < 0.9 else 1,
        length_penalty=pick.choice((-1.0, 0.0, 0.5, 1.0, 2.0)),
        early_stopping=pick.choice((True, False, "never")),
        repetition_penalty=pick.choice((1.0, 1.0, 0.7, 1.3, 1.5)),
        no_repeat_ngram_size=pick.choice((0, 0, 2, 3)),
        stop_repetition=False,  # transformers knows no such thing
    )
    return vocab_size, config, StopRules(frozenset(stop_ids))


def check_against_transformers(
    seed: int, vocab_sizes: tuple[int, ...], scale: float = 1.0, whole: bool = False
) -> None:
    vocab_size, config, stop = random_case(seed, vocab_sizes)
    model, embeds = tiny_llama(seed, vocab_size, sorted(stop.token_ids), scale, whole), prompt_embeds(seed)
    tokens, reason = our_tokens(TorchDecoder(model), embeds, config, stop)
    assert tokens == their_tokens(model, embeds, config, stop), (config, stop)
    assert reason == ("stop" if tokens[-1] in stop.token_ids else "length")


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("seed", range(80))
def test_tokens_are_those_of_transformers(seed: int, scale: float) -> None:
    check_against_transformers(seed, (40, 64, 90), scale)


@pytest.fixture
def stable_topk(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.topk leaves the order of ties open; let it be ours: the smaller index first."""

    def topk(values: torch.Tensor, k: int, dim: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
        ordered = torch.sort(values, dim=dim, descending=True, stable=True)
        return ordered.values.narrow(dim, 0, k), ordered.indices.narrow(dim, 0, k)

    monkeypatch.setattr(torch, "topk", topk)


@pytest.mark.usefixtures("stable_topk")
@pytest.mark.parametrize("seed", range(1000, 1060))
def test_vocabularies_small_for_their_beams(seed: int) -> None:
    """The first step then has fewer tokens than candidates, and beams that must not branch do."""
    check_against_transformers(seed, (5, 7, 12))


@pytest.mark.usefixtures("stable_topk")
@pytest.mark.parametrize("scale", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(2000, 2020))
def test_ties_go_to_the_smaller_index(seed: int, scale: float) -> None:
    check_against_transformers(seed, (6, 17, 40), scale, whole=True)


@pytest.mark.usefixtures("stable_topk")
def test_beams_with_every_token_banned_answer_nothing() -> None:
    """Three tokens, none of which may come twice, leave no fourth."""
    config, stop = GenerationConfig(max_new_tokens=4, num_beams=2, no_repeat_ngram_size=1), StopRules(frozenset())
    model = tiny_llama(0, 3)
    assert their_tokens(model, prompt_embeds(0), config, stop) == []
    assert our_tokens(TorchDecoder(model), prompt_embeds(0), config, stop) == ([], "stop")


@pytest.mark.parametrize(
    ("config", "from_step"),
    [
        (GenerationConfig(), 0),
        (GenerationConfig(min_new_tokens=3), 2),
        (GenerationConfig(repetition_penalty=1.2), None),
        (GenerationConfig(no_repeat_ngram_size=3), None),
        (GenerationConfig(do_sample=True, seed=1), None),
        (GenerationConfig(num_beams=2), None),
    ],
)
def test_steps_ask_for_no_logits_where_the_likeliest_token_is_the_next(
    config: GenerationConfig, from_step: int | None
) -> None:
    decoder = FakeDecoder(random_logits(20, seed=4))
    our_tokens(decoder, decoder.embed([1, 2]), replace(config, max_new_tokens=6), StopRules(frozenset()))
    prompt, *steps = decoder.rounds
    assert not any(chunk.likeliest for chunk in prompt)
    assert [all(chunk.likeliest for chunk in chunks) for chunks in steps] == [
        from_step is not None and number >= from_step for number in range(len(steps))
    ]


def test_greedy_ties_go_to_the_smaller_token() -> None:
    decoder, config = TorchDecoder(tiny_llama(0, 40, scale=0.0)), GenerationConfig(max_new_tokens=3)
    tokens, _ = our_tokens(decoder, prompt_embeds(0), config, StopRules(frozenset()))
    assert tokens == [0, 0, 0]


@given(
    st.lists(st.sampled_from([-np.inf, -1e9, -2.0, 0.0, 1.0, 1.5]), min_size=1, max_size=30),
    st.integers(1, 40),
)
def test_top_k_is_a_stable_sort(values: list[float], count: int) -> None:
    array = np.array(values, np.float32)
    assert top_k(array, count).tolist() == np.argsort(-array, kind="stable")[:count].tolist()


# Sampling


def sampled(config: GenerationConfig) -> list[int]:
    return our_tokens(FakeDecoder(random_logits(30, 0)), np.ones((3, 1), np.float32), config, StopRules(frozenset()))[0]


def test_a_seed_reproduces() -> None:
    config = GenerationConfig(do_sample=True, max_new_tokens=20, seed=7)
    assert sampled(config) == sampled(config)
    assert sampled(config) != sampled(replace(config, seed=8))
    assert sampled(config) != sampled(GenerationConfig(max_new_tokens=20))


def test_samples_follow_the_distribution() -> None:
    config = GenerationConfig(do_sample=True, temperature=1.5, top_k=6)
    scores = np.random.default_rng(0).normal(0, 1, 10).astype(np.float32)
    rng, draws = np.random.default_rng(0), 3000
    counts = np.bincount([sample(scores, config, rng) for _ in range(draws)], minlength=10)
    expected = sampling_distribution(scores, config) * draws
    kept = expected > 0
    assert kept.sum() == 6
    assert counts[~kept].sum() == 0
    chi_square = np.sum(np.square(counts[kept] - expected[kept]) / expected[kept])
    assert chi_square < 20.5  # 5 degrees of freedom: exceeded once in a thousand seeds
