"""Beam search on a fake decoder: it finds the best sequence there is, and copies the prompt once."""

import itertools

import numpy as np
import pytest

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.beam_search import beam_search
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.decoder import Chunk, prefill, verify
from salmonrun.runtime.decoders.kv_cache import Slot
from salmonrun.runtime.logits import log_softmax
from salmonrun.runtime.rounds import run_together
from salmonrun.runtime.search import StopRules
from tests.helpers.fakes import FakeDecoder, random_logits
from tests.helpers.searches import our_tokens


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_enough_beams_find_the_best_of_all_sequences(seed: int, length_penalty: float) -> None:
    """As many beams as there are sequences: nothing is pruned, so the answer is the best one there is."""
    vocab_size, length, stop = 3, 3, 2
    decoder = FakeDecoder(random_logits(vocab_size, seed))
    config = GenerationConfig(
        max_new_tokens=length, num_beams=27, length_penalty=length_penalty, early_stopping="never"
    )
    prompt = [1, 2]
    scores = {}
    for sequence in itertools.product(range(vocab_size), repeat=length):
        tokens = sequence[: sequence.index(stop) + 1] if stop in sequence else sequence
        with decoder.open(1, 10) as (slot,):
            rows = [prefill(decoder, slot, decoder.embed(prompt)), *verify(decoder, slot, tokens)]
        total = sum(log_softmax(row)[token] for row, token in zip(rows, tokens, strict=False))
        scores[tokens] = total / len(tokens) ** length_penalty
    found, reason = our_tokens(decoder, decoder.embed(prompt), config, StopRules(frozenset({stop})))
    assert tuple(found) == max(scores, key=lambda sequence: scores[sequence])
    assert reason == ("stop" if found[-1] == stop else "length")


def test_never_stopping_early_with_a_penalty_on_length() -> None:
    """A length penalty below 0 makes the current length the best a running beam can hope for, not the longest one."""
    first, second, stop = 0, 1, 2
    table = {(): [0.9, 0.02, 0.05, 0.03], (first,): [0.02, 0.9, 0.06, 0.02], (first, second): [0.01, 0.01, 0.97, 0.01]}

    def next_logits(history: tuple[int, ...]) -> F32:
        return np.log(np.array(table.get(history[1:], [0.25] * 4), np.float32))

    config = GenerationConfig(max_new_tokens=40, num_beams=2, length_penalty=-1.0, early_stopping="never")
    tokens, _ = our_tokens(FakeDecoder(next_logits), np.ones((1, 1), np.float32), config, StopRules(frozenset({stop})))
    assert tokens == [first, second, stop]  # with 40 for the length, the search ends when [stop] and [0, stop] are full


class WholeCopies(FakeDecoder):
    """Forks every position, shared or not."""

    def fork(self, source: Slot, target: Slot, length: int) -> None:
        source.prefixes, target.prefixes = {}, {}
        super().fork(source, target, length)


@pytest.mark.parametrize("seed", range(20))
def test_beams_copy_their_prompt_once(seed: int) -> None:
    """Later copies are of generated positions only, and change nothing."""
    config = GenerationConfig(max_new_tokens=15, num_beams=2 + seed % 5, early_stopping="never", length_penalty=2.0)
    stop = StopRules(frozenset({0}))
    prompt = np.arange(1, 51, dtype=np.float32)[:, None]
    decoder, whole = FakeDecoder(random_logits(30, seed)), WholeCopies(random_logits(30, seed))
    assert our_tokens(decoder, prompt, config, stop) == our_tokens(whole, prompt, config, stop)
    first, later = decoder.copied[: config.num_beams - 1], decoder.copied[config.num_beams - 1 :]
    assert first == [50] * (config.num_beams - 1)
    assert len(later) >= 3
    assert max(later) < 15
    assert min(whole.copied) >= 50


@pytest.mark.parametrize("kept", [0, 50])
def test_beams_copy_their_prompt_once_after_a_fork(kept: int) -> None:
    """As in Heard.ask: the first slot begins as a fork of the recording's slot, and the question follows."""
    config = GenerationConfig(max_new_tokens=15, num_beams=4, early_stopping="never", length_penalty=2.0)
    decoder = FakeDecoder(random_logits(30, 0))
    with decoder.open(1, 50) as (heard,), decoder.open(4, 100) as slots:
        prefill(decoder, heard, np.ones((50, 1), np.float32))
        prompt = Chunk(slots[0], np.ones((30, 1), np.float32), keep=kept, source=heard)
        run_together(decoder, [beam_search(prompt, slots, kept + 30, config, StopRules(frozenset()))])
    later = decoder.copied[4:]
    assert later
    assert max(later) < 15
