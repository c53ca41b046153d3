"""A decoder that hangs is noticed; one that has nothing to do, or much, is not taken for one."""

import threading
from collections.abc import Sequence

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.decoders.kv_cache import Slot
from salmonrun.runtime.rounds import Rounds
from salmonrun.runtime.search import StopRules, decode
from salmonrun.runtime.server.watchdog import STALLED_S, Watchdog
from tests.helpers.fakes import FakeDecoder, random_logits


class Hanging(FakeDecoder):
    """Does not come back from its third round until it is let."""

    def __init__(self) -> None:
        super().__init__(random_logits(12, 0))
        self.hangs, self.released = threading.Event(), threading.Event()

    def forward(self, chunks: Sequence[Chunk[Slot]]) -> list[F32]:
        if len(self.rounds) == 2:
            self.hangs.set()
            assert self.released.wait(60)
        return super().forward(chunks)


class Clock:
    """Seconds, by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_decoder_that_hangs() -> None:
    decoder, clock = Hanging(), Clock()
    rounds = Rounds(decoder)
    watchdog = Watchdog(rounds, clock)

    def answer() -> None:
        with rounds.open(1, 60) as slots:
            config = GenerationConfig(max_new_tokens=5, min_new_tokens=5)
            rounds.run([decode(Chunk(slots[0], decoder.embed([1])), config, StopRules(frozenset()))])

    clock.now += 10 * STALLED_S
    assert watchdog.stalled_s() == 0.0, "nothing was asked for"
    thread = threading.Thread(target=answer)
    thread.start()
    assert decoder.hangs.wait(60)
    clock.now += STALLED_S - 1
    assert watchdog.stalled_s() == 0.0, "not for long"
    clock.now += 1
    assert watchdog.stalled_s() == STALLED_S
    decoder.released.set()
    thread.join(60)
    assert watchdog.stalled_s() == 0.0
    assert len(decoder.rounds) > 2


def test_a_decoder_that_is_busy() -> None:
    """Answers are always open, and every round says that it is alive."""
    decoder, clock = FakeDecoder(random_logits(12, 0)), Clock()
    rounds = Rounds(decoder)
    watchdog = Watchdog(rounds, clock)
    with rounds.open(1, 60) as slots:
        search = decode(
            Chunk(slots[0], decoder.embed([1])), GenerationConfig(max_new_tokens=20), StopRules(frozenset())
        )
        for _ in rounds.tokens(search):
            assert watchdog.stalled_s() == 0.0
            clock.now += STALLED_S - 1
