"""Verifying a draft is decoding one by one, whatever the draft."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.decoder import Chunk, Decoder
from salmonrun.runtime.rounds import run_together
from salmonrun.runtime.search import FinishReason, Search, StopRules, decode, decode_drafted
from tests.helpers.fakes import FakeDecoder, random_logits

VOCAB = 6
CONTEXT = [1, 2, 3]
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=10)
PLAIN = GenerationConfig(max_new_tokens=10)
CONFIGS = [
    PLAIN,
    GenerationConfig(max_new_tokens=1),
    GenerationConfig(max_new_tokens=8, min_new_tokens=5),
    GenerationConfig(max_new_tokens=8, repetition_penalty=3.0),
    GenerationConfig(max_new_tokens=8, no_repeat_ngram_size=2),
]
NO_STOP = StopRules(frozenset())

Answer = tuple[list[int], FinishReason]


def one_by_one(decoder: Decoder[Any], said: Sequence[int], config: GenerationConfig, stop: StopRules) -> Answer:
    """The greedy answer behind `said`."""
    with decoder.open(1, 40) as (slot,):
        prompt = Chunk(slot, [0, *CONTEXT, *said])
        return run(decoder, decode(prompt, config, stop, said, [0.0] * len(said)))


def drafted(
    decoder: Decoder[Any], said: Sequence[int], draft: Sequence[int], config: GenerationConfig, stop: StopRules
) -> Answer:
    with decoder.open(1, 40) as (slot,):
        prompt = Chunk(slot, [0, *CONTEXT, *said, *draft], wanted=1 + len(draft))
        return run(decoder, decode_drafted(prompt, 1 + len(CONTEXT), said, [0.0] * len(said), draft, config, stop))


def run(decoder: Decoder[Any], search: Search[Any]) -> Answer:
    (answer,) = run_together(decoder, [search])
    return answer.tokens, answer.finish_reason


@settings(max_examples=200)
@given(TOKENS, st.data(), st.sampled_from(CONFIGS), st.integers(0, 1000), st.sampled_from(["id", "string", "none"]))
def test_any_draft_gives_the_greedy_answer(
    said: list[int], data: st.DataObject, config: GenerationConfig, seed: int, stops_at: str
) -> None:
    """A draft is noise, or a part of the right answer with noise behind it."""
    said = said[: config.max_new_tokens - 1]
    stop = StopRules(frozenset({0})) if stops_at == "id" else NO_STOP
    if stops_at == "string":
        stop = replace(stop, strings=("4",), decode=lambda tokens: "".join(map(str, tokens[len(said) :])))
    decoder = FakeDecoder(random_logits(VOCAB, seed))
    expected = one_by_one(decoder, said, config, stop)
    right = expected[0][len(said) :]
    draft = [*right[: data.draw(st.integers(0, len(right)))], *data.draw(TOKENS)]
    assert drafted(decoder, said, draft, config, stop) == expected


@pytest.mark.parametrize("ends", [True, False])
def test_a_right_draft_is_one_pass(ends: bool) -> None:
    """The draft has no stop token: that is found behind it."""
    stop = StopRules(frozenset({0})) if ends else NO_STOP
    for seed in range(20):
        decoder = FakeDecoder(random_logits(VOCAB, seed))
        tokens, reason = one_by_one(decoder, [], PLAIN, stop)
        draft = tokens[:-1] if reason == "stop" else tokens
        decoder.rounds.clear()
        assert drafted(decoder, [], draft, PLAIN, stop) == (tokens, reason)
        assert len(decoder.rounds) == 1


def test_a_wrong_token_costs_the_steps_behind_it() -> None:
    decoder = FakeDecoder(random_logits(VOCAB, 3))
    right, _ = one_by_one(decoder, [], PLAIN, NO_STOP)
    wrong = [*right[:6], (right[6] + 1) % VOCAB, *right[7:]]
    decoder.rounds.clear()
    assert drafted(decoder, [], wrong, PLAIN, NO_STOP) == (right, "length")
    assert [len(chunk.inputs) for (chunk,) in decoder.rounds] == [4 + 10, 1, 1, 1]  # right[6] was chosen by the pass


@pytest.mark.parametrize("config", [PLAIN, replace(PLAIN, no_repeat_ngram_size=1), CONFIGS[3]])
def test_on_a_real_decoder(tiny_engine: Engine, config: GenerationConfig) -> None:
    decoder = tiny_engine.model.decoder
    for said in ([], [7], [7, 8, 9]):
        expected = one_by_one(decoder, said, config, NO_STOP)
        right = expected[0][len(said) :]
        for draft in ([], right, right[:4], [*right[:2], 5, 5, 5], [250]):
            assert drafted(decoder, said, draft, config, NO_STOP) == expected
