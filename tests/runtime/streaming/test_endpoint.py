"""Where utterances begin and end."""

from dataclasses import replace

import numpy as np
import pytest

from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.longform.config import TranscribeConfig
from salmonrun.runtime.streaming.config import EndpointConfig
from salmonrun.runtime.streaming.endpoint import Endpointer
from salmonrun.runtime.vad import VAD_HOP
from tests.helpers.streams import scripted

HOP_S = VAD_HOP / 16000
HOP = np.zeros(VAD_HOP, np.float32)
# In hops: rule 1 after 20, rule 2 after 10, rule 3 from 50 on; 3 of margin.
CONFIG = EndpointConfig(silence_s=20 * HOP_S, pause_s=10 * HOP_S, longest_s=50 * HOP_S, margin_s=3 * HOP_S)


def ends_after(silent_hops: int, length_hops: int, said: bool) -> bool:
    """Whether an utterance is over that ends with so many hops of silence."""
    endpointer = Endpointer(CONFIG, scripted(0, 1, silent_hops).open())
    for _ in range(1 + silent_hops):
        endpointer.hear(HOP)
    assert endpointer.silent == silent_hops * VAD_HOP
    return endpointer.over(length_hops * VAD_HOP, said)


@pytest.mark.parametrize(
    ("rule", "silent", "length", "said"), [(1, 20, 30, False), (2, 10, 30, True), (3, 4, 50, True), (3, 4, 50, False)]
)
def test_each_rule_at_its_hop(rule: int, silent: int, length: int, said: bool) -> None:
    assert ends_after(silent, length, said)
    assert not ends_after(silent - 1, length, said)
    if rule == 3:
        assert not ends_after(silent, length - 1, said)


def test_nothing_ends_while_there_is_speech() -> None:
    assert not ends_after(0, 10_000, said=True)


def test_speech_starts_the_silence_anew() -> None:
    endpointer = Endpointer(CONFIG, scripted(0, 1, 9, 1, 9).open())
    assert [endpointer.hear(HOP) for _ in range(20)] == [True] + [False] * 9 + [True] + [False] * 9
    assert endpointer.silent == 9 * VAD_HOP
    assert not endpointer.over(20 * VAD_HOP, said=True)


def test_the_margin_is_kept_in_front() -> None:
    endpointer = Endpointer(CONFIG, scripted(9).open())
    hops = [np.full(VAD_HOP, i, np.float32) for i in range(5)]
    for hop in hops:
        endpointer.keep(hop)
    assert np.array_equal(endpointer.take_kept(), hops[2:])
    assert endpointer.take_kept() == []


def test_more_is_kept_in_front_of_what_was_noticed_late() -> None:
    """Half of the margin in front of where it was first suspected."""
    endpointer = Endpointer(CONFIG, scripted(9, late=5).open())
    hops = [np.full(VAD_HOP, i, np.float32) for i in range(50)]
    for hop in hops:
        endpointer.keep(hop)
    assert np.array_equal(endpointer.take_kept(), hops[-round(5 + CONFIG.margin_s / HOP_S / 2) :])


@pytest.mark.parametrize(("pause_hops", "kept"), [(4, 2), (6, 3), (100, 3)])
def test_at_most_half_a_pause_is_kept_behind(pause_hops: int, kept: int) -> None:
    config = replace(CONFIG, pause_s=pause_hops * HOP_S)
    assert Endpointer(config, scripted(9).open()).behind == kept * VAD_HOP


def test_pauses_that_people_make_end_an_utterance() -> None:
    """Also before anything was understood: a short sentence may be over before its first update."""
    config = EndpointConfig()
    assert max(config.pause_s, config.silence_s) <= 0.5
    assert TranscribeConfig().part_pause_s == config.pause_s


def test_without_a_margin_nothing_is_kept() -> None:
    endpointer = Endpointer(EndpointConfig(margin_s=0), scripted(9).open())
    endpointer.keep(HOP)
    assert endpointer.take_kept() == []


def test_without_a_config_all_is_speech() -> None:
    endpointer = Endpointer(None, None)
    assert endpointer.hear(HOP)
    assert not endpointer.over(10**9, said=True)
    assert endpointer.margin == endpointer.behind == endpointer.silent == 0


@pytest.mark.parametrize("name", ["silence_s", "pause_s", "longest_s", "margin_s"])
@pytest.mark.parametrize(("value", "expected"), [(-1.0, "it must be"), (float("nan"), "expected a finite number")])
def test_bad_numbers_are_refused(name: str, value: float, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"endpoint.{name} is {value}; {expected}"):
        EndpointConfig(**{name: value})  # type: ignore[arg-type]


def test_no_pause_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"endpoint.pause_s is 0; it must be above 0 seconds"):
        EndpointConfig(pause_s=0)


def test_an_endless_margin_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"endpoint.margin_s is inf"):
        EndpointConfig(margin_s=float("inf"))
