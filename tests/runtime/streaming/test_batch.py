"""Greedy decoding of several slots at once: the same tokens as alone."""

import threading
from collections.abc import Generator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.search import FinishReason, StopRules, decode_batch, decode_one_by_one
from tests.helpers.fakes import FakeDecoder, random_logits

VOCAB = 7
CONFIGS = [
    GenerationConfig(max_new_tokens=12),
    GenerationConfig(max_new_tokens=1),
    GenerationConfig(max_new_tokens=9, min_new_tokens=4),
    GenerationConfig(max_new_tokens=12, repetition_penalty=3.0),
    GenerationConfig(max_new_tokens=12, no_repeat_ngram_size=2),
]


def collect(search: Generator[int, None, FinishReason]) -> tuple[list[int], FinishReason]:
    tokens: list[int] = []
    while True:
        try:
            tokens.append(next(search))
        except StopIteration as end:
            return tokens, end.value


@settings(max_examples=60)
@given(
    st.sampled_from(CONFIGS),
    st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6), min_size=1, max_size=5),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_each_is_answered_as_alone(
    config: GenerationConfig, prompts: list[list[int]], seed: int, by_string: bool
) -> None:
    stop = StopRules(frozenset({0}))
    if by_string:
        stop = replace(stop, strings=("12",), decode=lambda tokens: "".join(map(str, tokens)))
    decoder = FakeDecoder(random_logits(VOCAB, seed))
    alone = []
    for prompt in prompts:
        with decoder.open(1, 20) as (slot,):
            logits = decoder.prefill(slot, decoder.embed(prompt))
            alone.append(collect(decode_one_by_one(decoder, slot, logits, config, stop, lambda: False)))
    decoder.calls.clear()
    with decoder.open(len(prompts), 20) as slots:
        logits = [decoder.prefill(slot, decoder.embed(prompt)) for slot, prompt in zip(slots, prompts, strict=True)]
        assert decode_batch(decoder, slots, logits, config, stop, lambda: False) == alone
    assert decoder.calls.count("step") == max(len(tokens) for tokens, _ in alone) - 1  # together


def test_nothing_to_decode() -> None:
    decoder = FakeDecoder(random_logits(VOCAB, 0))
    assert decode_batch(decoder, [], [], CONFIGS[0], StopRules(frozenset()), lambda: False) == []
    assert decoder.calls == []


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_cancelled_within_a_step(allowed: int) -> None:
    cancel = threading.Event()
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        if asked > allowed:
            cancel.set()
        return cancel.is_set()

    decoder = FakeDecoder(random_logits(VOCAB, 1))
    with decoder.open(2, 20) as slots:
        logits = [decoder.prefill(slot, decoder.embed([i])) for i, slot in enumerate(slots)]
        config = GenerationConfig(max_new_tokens=10)
        answers = decode_batch(decoder, slots, logits, config, StopRules(frozenset()), cancelled)
    assert [(len(tokens), reason) for tokens, reason in answers] == [(allowed, "cancelled")] * 2
    assert np.array_equal([slot.length for slot in slots], [1 + allowed] * 2)
