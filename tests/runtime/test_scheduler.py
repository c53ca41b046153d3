"""Whatever joins, leaves, is cancelled or late: small rounds, nobody starves, no slot is lost, the same answers."""

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from salmonrun.runtime import running, schedule, terms
from salmonrun.runtime.answer import choose_search
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.decoder import Chunk, Lease
from salmonrun.runtime.decoders.cache_budget import CacheBudget
from salmonrun.runtime.decoders.kv_cache import Slot
from salmonrun.runtime.errors import BusyError, CapacityError, DeadlineError
from salmonrun.runtime.prompt import PromptIds
from salmonrun.runtime.request import Request
from salmonrun.runtime.rounds import Rounds, run_together
from salmonrun.runtime.running import Running
from salmonrun.runtime.search import Hypothesis, Need, Search, StopRules, decode
from salmonrun.runtime.terms import Terms
from tests.helpers.fakes import FakeDecoder, random_logits

VOCAB = 12
LOGITS = random_logits(VOCAB, 7)
MEMORY = 200  # positions
STEPS, PIECE, PATIENCE = 6, 5, 3  # small, so that all of them matter


class Bounded(FakeDecoder):
    """With so many positions for all, and books of what is open."""

    def __init__(self) -> None:
        super().__init__(LOGITS)
        self.budget = CacheBudget(1, MEMORY)
        self.open_slots: set[int] = set()

    def open(self, count: int, capacity: int) -> Lease[Slot]:
        self.budget.take(count * capacity)
        lease = super().open(count, capacity)
        self.open_slots |= {id(slot) for slot in lease.slots}

        def give_back(slots: Sequence[Slot]) -> None:
            lease.close()
            self.budget.give_back(count * capacity)
            self.open_slots -= {id(slot) for slot in slots}

        return Lease(lease.slots, give_back)

    def forward(self, chunks: Sequence[Chunk[Slot]]) -> list[F32]:
        assert all(id(chunk.slot) in self.open_slots for chunk in chunks)
        return super().forward(chunks)


@dataclass
class Asked:
    """A request on its way."""

    prompt: list[int]
    config: GenerationConfig
    terms: Terms
    lease: Lease[Slot]
    context: AbstractContextManager[Sequence[Running[Slot]]]
    running: Running[Slot]
    cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def own_slots(self) -> set[int]:
        return {id(slot) for slot in self.lease.slots}


def search_of(prompt: list[int], config: GenerationConfig, slots: Sequence[Slot]) -> Search[Slot]:
    request = Request(PromptIds((), ()), config, StopRules(frozenset({0})))
    return choose_search(request, Chunk(slots[0], prompt), slots, len(prompt))


def alone(prompt: list[int], config: GenerationConfig) -> Hypothesis:
    """With a decoder of its own."""
    decoder = FakeDecoder(LOGITS)
    with decoder.open(config.num_beams, len(prompt) + config.max_new_tokens) as slots:
        return run_together(decoder, [search_of(prompt, config, slots)])[0]


class Scheduling(RuleBasedStateMachine):
    """One thread that does what many could do, between any two rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = 0.0
        self.patch.setattr(time, "monotonic", lambda: self.clock)
        for module, name, value in (
            (running, "PIECE", PIECE),
            (schedule, "PROMPTS", PIECE),
            (schedule, "STEPS", STEPS),
            (schedule, "PATIENCE", PATIENCE),
        ):
            self.patch.setattr(module, name, value)
        self.decoder = Bounded()
        self.rounds = Rounds(self.decoder)
        self.rounds.watchers.append(self.after_a_round)
        self.asked: list[Asked] = []
        self.kept: list[Lease[Slot]] = []
        self.most = 0  # searches that were open at once

    def teardown(self) -> None:
        for one in self.asked:
            self.part(one)
        for lease in self.kept:
            lease.close()
        self.patch.undo()
        assert self.decoder.open_slots == set()
        assert self.decoder.budget.usage == 0

    def after_a_round(self, report: schedule.Round) -> None:
        """Small rounds; whom it was cancelled or too late for has ended; nobody waits for long."""
        largest = max((one.config.num_beams for one in self.asked), default=0)
        assert report.steps <= max(STEPS, largest)
        assert report.prompts <= PIECE
        assert report.positions == sum(len(chunk.inputs) for chunk in self.decoder.rounds[-1]) > 0
        number = self.rounds._number
        for one in self.asked:
            if not one.running.done:
                assert not one.terms.cancelled
                assert not one.terms.expired
                assert number - one.running.served <= PATIENCE + self.most

    @rule(
        length=st.integers(1, 24),
        longest=st.integers(1, 8),
        beams=st.sampled_from([1, 1, 1, 2, 4]),
        sampled=st.booleans(),
        priority=st.sampled_from([terms.STREAM, 0, 0, 1]),
        deadline=st.sampled_from([None, None, 3.0, 10.0]),
        seed=st.integers(0, 9),
    )
    def join(
        self, length: int, longest: int, beams: int, sampled: bool, priority: int, deadline: float | None, seed: int
    ) -> None:
        """A request; it waits for memory if there is none, and is refused if that does not help."""
        cancel = threading.Event()
        own = Terms(priority, None if deadline is None else self.clock + deadline, cancel)
        drawn = sampled and beams == 1
        config = GenerationConfig(longest, num_beams=beams, do_sample=drawn, seed=seed if drawn else None)
        prompt = [(seed + 5 * i) % VOCAB for i in range(length)]
        try:
            lease = self.rounds.open(beams, length + longest, own)
        except BusyError:
            assert self.kept, "all memory is of requests: it would have been given back"
            assert all(one.running.done for one in self.asked), "and what can be waited for was"
            return
        context = self.rounds.entered([search_of(prompt, config, lease.slots)], own, lease)
        (one,) = context.__enter__()
        self.asked.append(Asked(prompt, config, own, lease, context, one, cancel))
        self.most = max(self.most, self.rounds.open_searches)

    @rule(capacity=st.integers(1, 90))
    def keep(self, capacity: int) -> None:
        """A recording that is asked about later; its memory is nobody's to wait for."""
        try:
            lease = self.rounds.open(1, capacity, stays=True)
        except BusyError:
            return
        self.kept.append(lease)
        self.rounds.append(Chunk(lease.slots[0], [1] * capacity, wanted=0))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        self.kept.pop(data.draw(st.integers(0, len(self.kept) - 1))).close()

    @rule(count=st.integers(1, 4))
    def go_on(self, count: int) -> None:
        for _ in range(count):
            self.one_round()

    def one_round(self) -> None:
        if self.rounds.open_searches:
            number = self.rounds._number
            self.rounds._wait(lambda: self.rounds._number > number)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Its memory is free with the next round."""
        one = data.draw(st.sampled_from(self.asked))
        one.cancel.set()
        self.one_round()
        assert one.running.done
        assert not one.own_slots & self.decoder.open_slots

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock += seconds
        self.one_round()
        for one in self.asked:
            if one.terms.expired:
                assert one.running.done

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A client that goes away in the middle, or has read all."""
        self.part(self.asked.pop(data.draw(st.integers(0, len(self.asked) - 1))))

    def part(self, one: Asked) -> None:
        one.context.__exit__(None, None, None)
        one.lease.close()

    @rule()
    def drain(self) -> None:
        """Nobody joins: all come to their ends, each as alone, and all memory is there but what is kept."""
        rounds = 0
        while self.rounds.open_searches:
            self.one_round()
            rounds += 1
            assert rounds <= 2 * sum(len(one.prompt) + one.config.max_new_tokens for one in self.asked)
        for one in self.asked:
            self.check(one)
            self.part(one)
        self.asked.clear()
        assert self.decoder.open_slots == {id(slot) for lease in self.kept for slot in lease.slots}

    def check(self, one: Asked) -> None:
        expected = alone(one.prompt, one.config)
        if one.running.error:
            assert isinstance(one.running.error, DeadlineError)
            assert one.terms.expired
            return
        found = one.running.result()
        if found.finish_reason == "cancelled":
            assert one.terms.cancelled
            assert one.config.num_beams > 1 or found.tokens == expected.tokens[: len(found.tokens)]
        else:
            assert found == expected

    @invariant()
    def memory_is_that_of_what_is_open(self) -> None:
        """And of what has ended none."""
        open_ones = [one.own_slots for one in self.asked if not one.running.done]
        kept = {id(slot) for lease in self.kept for slot in lease.slots}
        assert self.decoder.open_slots == kept.union(*open_ones)
        assert self.rounds.waiting == 0
        assert 0 <= self.decoder.budget.usage <= 1


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# What it does, one by one


def entered(rounds: Rounds[Slot], decoder: FakeDecoder, prompt: int, tokens: int, priority: int = 0) -> Running[Slot]:
    """A search that takes part from now on."""
    slots = decoder.open(1, prompt + tokens).slots
    chunk = Chunk(slots[0], [1] * prompt)
    search = decode(chunk, GenerationConfig(tokens, stop_repetition=False), StopRules(frozenset()))
    context = rounds.entered([search], Terms(priority))
    (one,) = context.__enter__()
    one.context = context  # type: ignore[attr-defined]  # it would leave with the end of this function
    return one


def rounds_until(rounds: Rounds[Slot], satisfied: Any) -> int:
    before = rounds._number
    rounds._wait(satisfied)
    return rounds._number - before


def test_a_long_prompt_delays_steps_by_its_share_of_a_round() -> None:
    """Each other search has a token from every round, and a round never more than a piece beside them."""
    decoder = FakeDecoder(LOGITS, max_length=5000)
    rounds = Rounds(decoder)
    seen: list[schedule.Round] = []
    speaking = [entered(rounds, decoder, 3, 60) for _ in range(5)]
    rounds_until(rounds, lambda: all(one.has(1) for one in speaking))
    rounds.watchers.append(seen.append)
    long = entered(rounds, decoder, 3000, 5)
    rounds_until(rounds, lambda: long.has(1))
    assert len(seen) == -(-3000 // schedule.PROMPTS)
    assert all(one.steps == 5 and one.prompts <= schedule.PROMPTS for one in seen)
    assert {len(one.tokens) for one in speaking} == {1 + len(seen)}


def test_prompts_take_turns() -> None:
    """A short one behind two long ones has its first token in the third round, not after all of theirs."""
    decoder = FakeDecoder(LOGITS, max_length=5000)
    rounds = Rounds(decoder)
    long = [entered(rounds, decoder, 2000, 5) for _ in range(2)]
    short = entered(rounds, decoder, 20, 5)
    assert rounds_until(rounds, lambda: short.has(1)) == 3
    assert not any(one.has(1) for one in long)


def test_streams_come_first_but_not_for_ever() -> None:
    decoder = FakeDecoder(LOGITS, max_length=5000)
    rounds = Rounds(decoder)
    request = entered(rounds, decoder, 100, 1)
    streams = [entered(rounds, decoder, 4000, 1, terms.STREAM) for _ in range(2)]
    assert rounds_until(rounds, lambda: request.done) == schedule.PATIENCE
    assert not any(one.done for one in streams)


def test_the_pieces_of_a_prompt_are_the_whole() -> None:
    """Whichever logits are wanted; the slot's beginning is given to it once."""
    for wanted in (0, 1, 2, 130, 300):
        decoder = FakeDecoder(LOGITS)
        with decoder.open(2, 400) as (source, slot):
            decoder.forward([Chunk(source, [3, 4], wanted=0)])
            chunk = Chunk(slot, [i % VOCAB for i in range(300)], wanted, keep=2, source=source)
            found: list[F32] = []

            def ask(chunk: Chunk[Slot] = chunk, found: list[F32] = found) -> Search[Slot]:
                logits = yield Need([chunk])
                assert logits
                found.append(logits[0])
                return Hypothesis([], "stop", [])

            Rounds(decoder).run([ask()])
            assert len(decoder.rounds) == 1 + 3
            with decoder.open(1, 400) as (other,):
                whole = decoder.forward([Chunk(other, chunk.inputs, wanted, keep=2, source=source)])[0]
        assert found[0].tobytes() == whole.tobytes()


# Memory


def test_who_waits_for_memory_has_it_in_order() -> None:
    """Threads: a large request is not overtaken by small ones that come later, and a more urgent one goes first."""
    decoder = Bounded()
    rounds = Rounds(decoder)
    first = rounds.open(1, 150)
    order: list[str] = []
    arrived = threading.Semaphore(0)

    def wait(name: str, capacity: int, own: Terms) -> None:
        lease = rounds.open(1, capacity, own)
        order.append(name)
        arrived.release()
        lease.close()

    threads = []
    for count, (name, capacity, own) in enumerate(
        (("large", 180, Terms()), ("small", 10, Terms()), ("urgent", 190, Terms(terms.STREAM)))
    ):
        threads.append(threading.Thread(target=wait, args=(name, capacity, own)))
        threads[-1].start()
        while rounds.waiting <= count:
            pass
    assert order == []
    first.close()
    for thread in threads:
        thread.join(30)
    assert order == ["urgent", "large", "small"]
    assert decoder.budget.usage == 0


def test_who_waits_for_memory_can_be_cancelled_or_too_late() -> None:
    decoder = Bounded()
    rounds = Rounds(decoder)
    cancel = threading.Event()
    with rounds.open(1, 150):
        timer = threading.Timer(0.05, cancel.set)
        timer.start()
        with pytest.raises(terms.CancelledEarlyError, match="cancelled before decoding"):
            rounds.open(1, 100, Terms(cancel=cancel))
        with pytest.raises(DeadlineError, match="passed before decoding"):
            rounds.open(1, 100, Terms.of(0, 0.05, None))
        with pytest.raises(CapacityError, match="the limit is"):
            rounds.open(1, 300)
    assert rounds.waiting == 0


def test_the_queue_for_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salmonrun.runtime.slot_queue.LONGEST", 0)
    with pytest.raises(BusyError, match=r"0 requests wait for memory .* ask again later"):
        Rounds(Bounded()).open(1, 10)
