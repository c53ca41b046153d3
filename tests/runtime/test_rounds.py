"""Searches that take rounds together are those that run alone, and both are the loops of the oracle."""

import gc
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from salmonrun.runtime.answer import choose_search
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.decoder import Chunk, Decoder, Lease, prefill
from salmonrun.runtime.decoders.kv_cache import Slot
from salmonrun.runtime.errors import CapacityError, ConfigError
from salmonrun.runtime.prompt import PromptIds
from salmonrun.runtime.request import Request
from salmonrun.runtime.rounds import Rounds, run_together
from salmonrun.runtime.search import FinishReason, Hypothesis, Need, Search, StopRules, decode, decode_drafted
from salmonrun.runtime.terms import Terms
from tests.helpers import oracle
from tests.helpers.fakes import FakeDecoder, random_logits

VOCAB = 12
LONGEST = 60
SAID = -0.25  # the log probability of what an answer is known to begin with
NO_STOP = StopRules(frozenset())
PLAIN = GenerationConfig(max_new_tokens=10)


@dataclass(frozen=True)
class Case:
    """A search of any kind, in both forms."""

    prompt: list[int]
    config: GenerationConfig
    stop: StopRules
    draft: list[int] | None = None  # of a drafted search
    said: tuple[int, ...] = ()  # its certain beginning

    def alone(self, decoder: FakeDecoder) -> tuple[list[int], FinishReason]:
        """By the oracle."""
        with decoder.open(self.config.num_beams, LONGEST) as slots:
            if self.draft is not None:
                prefill(decoder, slots[0], decoder.embed(self.prompt[:1]))
                arguments = (self.prompt[1:], self.said, self.draft, self.config, self.stop, never)
                return oracle.decode_drafted(decoder, slots[0], *arguments)
            logits = prefill(decoder, slots[0], decoder.embed(self.prompt))
            if self.config.num_beams > 1:
                return oracle.beam_search(decoder, slots, logits, self.config, self.stop, never)
            search = oracle.decode_one_by_one(decoder, slots[0], logits, self.config, self.stop, never)
            return oracle.collect(search)

    def search(self, slots: Sequence[Any]) -> Search[Any]:
        """By a generator."""
        if self.draft is not None:
            chunk = Chunk(slots[0], [*self.prompt, *self.said, *self.draft], wanted=1 + len(self.draft))
            said = self.said, [SAID] * len(self.said)
            return decode_drafted(chunk, len(self.prompt), *said, self.draft, self.config, self.stop)
        request = Request(PromptIds((), ()), self.config, self.stop)
        return choose_search(request, Chunk(slots[0], self.prompt), slots, len(self.prompt))


def never() -> bool:
    return False


def spelled(tokens: Sequence[int]) -> str:
    return "".join(map(chr, (ord("a") + token for token in tokens)))


def draw_case(pick: random.Random, logits: Callable[[tuple[int, ...]], F32]) -> Case:
    """Greedy, sampled, beams or drafted, with any settings."""
    kind = pick.choice(("greedy", "sampled", "beams", "drafted"))
    longest = pick.randint(1, 12)
    config = GenerationConfig(
        max_new_tokens=longest,
        min_new_tokens=pick.choice((0, 0, min(3, longest))),
        num_beams=pick.randint(2, 4) if kind == "beams" else 1,
        length_penalty=pick.choice((0.0, 1.0, 2.0)),
        early_stopping=pick.choice((True, False, "never")),
        repetition_penalty=pick.choice((1.0, 1.0, 1.4)),
        no_repeat_ngram_size=pick.choice((0, 0, 3)),
        do_sample=kind == "sampled",
        temperature=pick.choice((0.7, 1.5)) if kind == "sampled" else 1.0,
        top_k=pick.choice((0, 5)) if kind == "sampled" else 0,
        seed=pick.randrange(1000) if kind == "sampled" else None,
    )
    stop = StopRules(frozenset(pick.sample(range(VOCAB), pick.choice((0, 1, 2)))))
    if pick.random() < 0.3:
        strings = tuple(spelled([pick.randrange(VOCAB) for _ in range(pick.choice((1, 2)))]) for _ in range(2))
        stop = replace(stop, strings=strings, decode=spelled)
    case = Case([pick.randrange(VOCAB) for _ in range(pick.randint(2, 6))], config, stop)
    if kind != "drafted":
        return case
    right, _ = case.alone(FakeDecoder(logits))
    certain = pick.randrange(len(right))
    draft = right[certain : certain + pick.randint(0, len(right))] + [
        pick.randrange(VOCAB) for _ in range(pick.choice((0, 0, 2)))
    ]
    return replace(case, draft=draft, said=tuple(right[:certain]))


@pytest.mark.parametrize("seed", range(250))
def test_mixed_searches_together_are_the_oracles_alone(seed: int) -> None:
    """2,000 searches in all, eight to a group."""
    pick = random.Random(seed)
    logits = random_logits(VOCAB, seed)
    cases = [draw_case(pick, logits) for _ in range(8)]
    expected = [case.alone(FakeDecoder(logits)) for case in cases]
    decoder = FakeDecoder(logits)
    leases = [decoder.open(case.config.num_beams, LONGEST) for case in cases]
    answers = run_together(decoder, [case.search(lease.slots) for case, lease in zip(cases, leases, strict=True)])
    assert [(answer.tokens, answer.finish_reason) for answer in answers] == expected
    for case, answer in zip(cases, answers, strict=True):
        np.testing.assert_allclose(answer.logprobs, log_probabilities(case, answer.tokens, logits), atol=1e-5)
    assert len(decoder.rounds) == max(rounds_of(case, logits) for case in cases)  # and no more than the longest alone


def log_probabilities(case: Case, tokens: Sequence[int], logits: Callable[[tuple[int, ...]], F32]) -> list[float]:
    """Of each token, by the logits behind all before it, in float64; what is said already has its own."""
    found = [SAID] * len(case.said)
    for count in range(len(case.said), len(tokens)):
        row = logits((*case.prompt, *tokens[:count])).astype(np.float64)
        found.append(float(row[tokens[count]] - np.log(np.exp(row).sum())))
    return found


def rounds_of(case: Case, logits: Callable[[tuple[int, ...]], F32]) -> int:
    decoder = FakeDecoder(logits)
    with decoder.open(case.config.num_beams, LONGEST) as slots:
        run_together(decoder, [case.search(slots)])
    return len(decoder.rounds)


def test_nothing_to_decode() -> None:
    decoder = FakeDecoder(random_logits(VOCAB, 0))
    assert run_together(decoder, []) == []
    assert decoder.rounds == []


def test_an_append_wants_no_logits() -> None:
    decoder = FakeDecoder(random_logits(VOCAB, 0))
    with decoder.open(1, 10) as (slot,):
        Rounds(decoder).append(Chunk(slot, [1, 2, 3], wanted=0))
        assert decoder.history(slot) == (1, 2, 3)


# Errors are the own ones of the search that causes them


def test_a_search_without_room_does_not_stop_the_others() -> None:
    decoder = FakeDecoder(random_logits(VOCAB, 1))
    with decoder.open(1, 40) as (wide,), decoder.open(1, 6) as (narrow,):
        rounds = Rounds(decoder)
        found: dict[str, Any] = {}

        def run(name: str, slot: Slot) -> None:
            try:
                (found[name],) = rounds.run([decode(Chunk(slot, [1, 2, 3]), PLAIN, NO_STOP)])
            except CapacityError as error:
                found[name] = error

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run, ("wide", "narrow"), (wide, narrow)))
    assert isinstance(found["narrow"], CapacityError)
    assert len(found["wide"].tokens) == 10


def test_an_error_of_a_search_is_raised_to_who_runs_it() -> None:
    """Three tokens, none of which may come twice, leave nothing to sample."""
    decoder = FakeDecoder(random_logits(3, 0))
    config = GenerationConfig(max_new_tokens=9, do_sample=True, seed=0, no_repeat_ngram_size=1)
    with decoder.open(2, 20) as (first, second):
        searches = [decode(Chunk(first, [1]), config, NO_STOP), decode(Chunk(second, [1]), PLAIN, NO_STOP)]
        with pytest.raises(ConfigError, match="no token is left"):
            Rounds(decoder).run(searches)


def test_an_interruption_leaves_no_search_with_wrong_logits() -> None:
    """The round is done, but not told to everybody: those that were not told cannot go on."""
    decoder = FakeDecoder(random_logits(VOCAB, 0))

    def interrupted(slot: Slot) -> Search[Slot]:
        yield Need([Chunk(slot, [1])])
        raise KeyboardInterrupt

    with decoder.open(2, 20) as (first, second):
        rounds = Rounds(decoder)
        tokens = rounds.tokens(decode(Chunk(second, [2]), PLAIN, NO_STOP))
        next(tokens)
        with pytest.raises(KeyboardInterrupt):
            rounds.run([interrupted(first)])
        assert len(list(tokens)) == 9  # told before, or never taken along


# Threads


def ask(decoder: Decoder[Any], rounds: Rounds[Any], case: Case) -> tuple[list[int], FinishReason]:
    with decoder.open(case.config.num_beams, LONGEST) as slots:
        (answer,) = rounds.run([case.search(slots)])
    return answer.tokens, answer.finish_reason


class Slow(FakeDecoder):
    """Takes a moment for a round, so that searches meet."""

    def forward(self, chunks: Sequence[Chunk[Slot]]) -> list[F32]:
        time.sleep(0.001)
        return super().forward(chunks)


def test_searches_of_many_threads_share_rounds() -> None:
    pick, logits = random.Random(0), random_logits(VOCAB, 5)
    cases = [draw_case(pick, logits) for _ in range(120)]
    expected = [case.alone(FakeDecoder(logits)) for case in cases]
    decoder = Slow(logits)
    rounds = Rounds(decoder)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda case: ask(decoder, rounds, case), cases)) == expected
    alone = sum(rounds_of(case, logits) for case in cases)
    assert len(decoder.rounds) < alone / 3
    assert decoder._pool.caches == []  # everything was given back


def test_a_search_that_nobody_looks_at_goes_on_with_the_others() -> None:
    decoder = FakeDecoder(random_logits(VOCAB, 0))
    rounds = Rounds(decoder)
    with decoder.open(2, 40) as (first, second):
        paused = rounds.tokens(decode(Chunk(first, [1]), PLAIN, NO_STOP))
        next(paused)
        rounds.run([decode(Chunk(second, [2]), PLAIN, NO_STOP)])
        taken = len(decoder.rounds)
        assert len(list(paused)) == 9
        assert len(decoder.rounds) == taken  # its tokens were there


def test_a_closed_generator_takes_no_further_part() -> None:
    decoder = FakeDecoder(random_logits(VOCAB, 0))
    rounds = Rounds(decoder)
    with decoder.open(2, 40) as (first, second):
        left = rounds.tokens(decode(Chunk(first, [1]), PLAIN, NO_STOP))
        next(left)
        left.close()
        length = first.length
        rounds.run([decode(Chunk(second, [2]), PLAIN, NO_STOP)])
        assert first.length == length


def test_slots_are_not_given_back_in_the_middle_of_a_round() -> None:
    """Leaving waits for the round that one takes part in."""
    entered, go_on = threading.Event(), threading.Event()

    class Held(FakeDecoder):
        def forward(self, chunks: Sequence[Chunk[Slot]]) -> list[F32]:
            if len(chunks) == 2:
                entered.set()
                assert go_on.wait(10)
            return super().forward(chunks)

    decoder = Held(random_logits(VOCAB, 0))
    rounds = Rounds(decoder)
    mine, others = decoder.open(1, 40), decoder.open(1, 40)
    tokens = rounds.tokens(decode(Chunk(mine.slots[0], [1]), PLAIN, NO_STOP))
    next(tokens)
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(rounds.run, [decode(Chunk(others.slots[0], [2]), PLAIN, NO_STOP)])
        assert entered.wait(10)
        leaving = pool.submit(tokens.close)
        time.sleep(0.05)
        assert not leaving.done()
        go_on.set()
        leaving.result(10)
        mine.close()
        assert len(other.result(10)[0].tokens) == 10


def test_a_generator_that_is_collected_in_its_own_threads_round_does_not_wait_for_it() -> None:
    decoder = FakeDecoder(random_logits(VOCAB, 0))
    rounds = Rounds(decoder)
    lease: Lease[Slot] = decoder.open(2, 40)
    forgotten = [rounds.tokens(decode(Chunk(lease.slots[0], [1]), PLAIN, NO_STOP))]
    next(forgotten[0])

    def dropping(slot: Slot) -> Search[Slot]:
        yield Need([Chunk(slot, [1])])
        forgotten.clear()
        gc.collect()
        yield Need([Chunk(slot, [1])])
        return Hypothesis([7], "stop", [-1.0])

    done = threading.Event()

    def run() -> None:
        assert rounds.run([dropping(lease.slots[1])])[0].tokens == [7]
        done.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert done.is_set()


# Cancelling


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("beams", [1, 3])
def test_cancelled_before_a_round(at: int, beams: int) -> None:
    """As many rounds as there were until then, and their tokens."""
    cancel = threading.Event()
    logits = random_logits(VOCAB, 3)

    class Cancelling(FakeDecoder):
        def forward(self, chunks: Sequence[Chunk[Slot]]) -> list[F32]:
            if len(self.rounds) == at:
                cancel.set()
            return super().forward(chunks)

    decoder = Cancelling(logits)
    case = Case([1, 2], replace(PLAIN, num_beams=beams), NO_STOP)
    with decoder.open(beams, LONGEST) as slots:
        (answer,) = Rounds(decoder).run([case.search(slots)], Terms(cancel=cancel))
    assert answer.finish_reason == "cancelled"
    assert len(decoder.rounds) == at + 1
    assert len(answer.tokens) == at
    if beams == 1:
        assert answer.tokens == case.alone(FakeDecoder(logits))[0][:at]


def test_cancelling_some_leaves_the_others() -> None:
    cancel = threading.Event()

    class Cancelling(FakeDecoder):
        def forward(self, chunks: Sequence[Chunk[Slot]]) -> list[F32]:
            if len(self.rounds) == 20:
                cancel.set()
            return super().forward(chunks)

    decoder = Cancelling(random_logits(VOCAB, 2))
    rounds, long = Rounds(decoder), replace(PLAIN, max_new_tokens=50)
    with decoder.open(2, LONGEST) as (first, second):
        kept = rounds.tokens(decode(Chunk(first, [1]), long, NO_STOP))
        next(kept)
        (stopped,) = rounds.run([decode(Chunk(second, [2]), long, NO_STOP)], Terms(cancel=cancel))
        assert stopped.finish_reason == "cancelled"
        assert 0 < len(stopped.tokens) <= 20
        assert len(list(kept)) == 49


def test_token_times_ascend_and_follow_the_prompt() -> None:
    decoder = Slow(random_logits(VOCAB, 2))
    with decoder.open(1, LONGEST) as (slot,):
        tokens = Rounds(decoder).tokens(decode(Chunk(slot, [1]), PLAIN, NO_STOP))
        started = time.perf_counter()
        while True:
            try:
                next(tokens)
            except StopIteration as end:
                running = end.value
                break
    assert running.prefilled_at is not None
    times = [started, running.prefilled_at, *running.token_at]
    assert len(running.token_at) == 10
    assert np.all(np.diff(times) >= 0)
