"""Verifying a draft is decoding one by one, whatever the draft."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.decoder import Decoder
from salmonrun.runtime.decoders.kv_cache import Slot
from salmonrun.runtime.search import FinishReason, StopRules, decode_drafted, decode_one_by_one
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


def never() -> bool:
    return False


def collect(search: Generator[int, None, FinishReason], said: Sequence[int]) -> Answer:
    tokens = list(said)
    while True:
        try:
            tokens.append(next(search))
        except StopIteration as end:
            return tokens, end.value


def one_by_one(
    decoder: Decoder[Slot],
    said: Sequence[int],
    config: GenerationConfig,
    stop: StopRules,
    cancelled: Callable[[], bool] = never,
) -> tuple[Answer, int]:
    """The greedy answer behind `said`, and the length of the slot in the end."""
    with decoder.open(1, 40) as (slot,):
        logits = decoder.prefill(slot, decoder.embed([0, *CONTEXT, *said]))
        search = decode_one_by_one(decoder, slot, logits, config, stop, cancelled, said)
        return collect(search, said), slot.length


def drafted(
    decoder: Decoder[Slot],
    said: Sequence[int],
    draft: Sequence[int],
    config: GenerationConfig,
    stop: StopRules,
    cancelled: Callable[[], bool] = never,
) -> tuple[Answer, int]:
    with decoder.open(1, 40) as (slot,):
        decoder.prefill(slot, decoder.embed([0]))
        return decode_drafted(decoder, slot, CONTEXT, said, draft, config, stop, cancelled), slot.length


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
    expected, length = one_by_one(decoder, said, config, stop)
    right = expected[0][len(said) :]
    draft = [*right[: data.draw(st.integers(0, len(right)))], *data.draw(TOKENS)]
    assert drafted(decoder, said, draft, config, stop) == (expected, length)


@pytest.mark.parametrize("ends", [True, False])
def test_a_right_draft_is_one_pass(ends: bool) -> None:
    """The draft has no stop token: that is found behind it."""
    stop = StopRules(frozenset({0})) if ends else NO_STOP
    for seed in range(20):
        decoder = FakeDecoder(random_logits(VOCAB, seed))
        (tokens, reason), _ = one_by_one(decoder, [], PLAIN, stop)
        draft = tokens[:-1] if reason == "stop" else tokens
        decoder.calls.clear()
        assert drafted(decoder, [], draft, PLAIN, stop)[0] == (tokens, reason)
        assert [call for call in decoder.calls if call != "truncate"] == ["prefill", "verify"]


def test_a_wrong_token_costs_the_steps_behind_it() -> None:
    decoder = FakeDecoder(random_logits(VOCAB, 3))
    (right, _), _ = one_by_one(decoder, [], PLAIN, NO_STOP)
    wrong = [*right[:6], (right[6] + 1) % VOCAB, *right[7:]]
    decoder.calls.clear()
    assert drafted(decoder, [], wrong, PLAIN, NO_STOP)[0] == (right, "length")
    assert decoder.calls.count("verify") == 1
    assert decoder.calls.count("step") == 3  # right[6] was chosen by the pass


def test_what_is_said_already_may_be_all() -> None:
    decoder = FakeDecoder(random_logits(VOCAB, 3))
    said = list(range(5)) * 2
    answer, length = drafted(decoder, said, [1, 2], PLAIN, NO_STOP)
    assert answer == (said, "length")
    assert length == 1  # nothing was computed
    assert decoder.calls == ["prefill"]


@pytest.mark.parametrize("allowed", range(4))
def test_cancelled_between_tokens(allowed: int) -> None:
    """What was verified until then stays; at most one more token is computed."""
    decoder = FakeDecoder(random_logits(VOCAB, 3))
    (right, _), _ = one_by_one(decoder, [], PLAIN, NO_STOP)
    asked = iter(range(100))
    (tokens, reason), length = drafted(decoder, [], right[:4], PLAIN, NO_STOP, lambda: next(asked) >= allowed)
    assert reason == "cancelled"
    assert tokens == right[: len(tokens)]
    assert 5 <= len(tokens) <= 5 + allowed
    assert length in (len(CONTEXT) + len(tokens), 1 + len(CONTEXT) + len(tokens))


@pytest.mark.parametrize("config", [PLAIN, replace(PLAIN, no_repeat_ngram_size=1), CONFIGS[3]])
def test_on_a_real_decoder(tiny_engine: Engine, config: GenerationConfig) -> None:
    decoder = tiny_engine.decoder
    for said in ([], [7], [7, 8, 9]):
        expected, length = one_by_one(decoder, said, config, NO_STOP)
        right = expected[0][len(said) :]
        for draft in ([], right, right[:4], [*right[:2], 5, 5, 5], [250]):
            assert drafted(decoder, said, draft, config, NO_STOP) == (expected, length)
