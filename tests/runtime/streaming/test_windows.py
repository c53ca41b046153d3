"""Cutting at pauses, with a detector that is told where speech is."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salmonrun.runtime.audio import F32
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.longform.config import TranscribeConfig
from salmonrun.runtime.longform.windows import SHORTEST_PAUSE, Splitter, Window
from salmonrun.runtime.pauses import before
from salmonrun.runtime.vad import LATE_MOST, VAD_HOP
from tests.helpers.streams import cut_at

HOPS_A_SECOND = 16000 / VAD_HOP


@dataclass
class ScriptedDetector:
    """Says what it is told, hop by hop, and silence after that."""

    speech: list[bool]
    name: str = "scripted"
    late: int = 0
    heard: list[F32] = field(default_factory=list)

    def is_speech(self, hop: F32) -> bool:
        assert hop.shape == (VAD_HOP,)
        self.heard.append(hop)
        return self.speech[len(self.heard) - 1] if len(self.heard) <= len(self.speech) else False


def hops(*parts: tuple[bool, float]) -> list[bool]:
    """Decisions for (speech, seconds)."""
    return [speech for speech, seconds in parts for _ in range(round(seconds * HOPS_A_SECOND))]


def ramp(count: int) -> F32:
    """Samples that are their own number (exact up to 2**24)."""
    return np.arange(count, dtype=np.float32)


def split(speech: list[bool], config: TranscribeConfig, pcm: F32 | None = None, block: int = 16000) -> list[Window]:
    pcm = ramp(len(speech) * VAD_HOP) if pcm is None else pcm
    splitter = Splitter(ScriptedDetector(speech), config)
    windows = [window for first in range(0, len(pcm), block) for window in splitter.push(pcm[first : first + block])]
    windows += splitter.finish()
    assert splitter.samples == len(pcm)
    return windows


def bounds(windows: list[Window]) -> list[tuple[int, int, int]]:
    return [(window.start, window.end, window.overlap) for window in windows]


def test_speech_gets_its_margins() -> None:
    windows = split(hops((False, 3.2), (True, 1.6), (False, 3.2)), cut_at())
    assert bounds(windows) == [(51200 - 8000, 76800 + 4000, 0)]


def test_blocks_may_be_single_samples() -> None:
    speech = hops((False, 0.5), (True, 0.5), (False, 1.0))
    assert bounds(split(speech, cut_at(), block=1)) == bounds(split(speech, cut_at()))


def test_margins_end_with_the_recording() -> None:
    assert bounds(split([True] * 10, cut_at())) == [(0, 5120, 0)]


def test_a_short_pause_stays_in_the_window() -> None:
    speech = [*[True] * 50, *[False] * 15, *[True] * 50]  # 15 hops are 0.48 s
    assert bounds(split(speech, cut_at(part_pause_s=0.5))) == [(0, 115 * 512, 0)]
    assert len(split(speech, cut_at(part_pause_s=0.48))) == 2


def test_margins_share_a_pause_shorter_than_both() -> None:
    speech = [*[True] * 50, *[False] * 10, *[True] * 50]  # 10 hops are 0.32 s
    first, second = split(speech, cut_at(part_pause_s=0.2))
    assert 50 * 512 < first.end <= second.start < 60 * 512


def test_speech_right_behind_a_window_has_the_rest_of_the_pause_in_front() -> None:
    speech = [*[True] * 50, *[False] * 16, *[True] * 50]  # 16 hops are 0.512 s: 0.25 s behind, the rest in front
    first, second = split(speech, cut_at())
    assert (first.end, second.start) == (50 * 512 + 4000, 50 * 512 + 4000)


def test_long_speech_is_cut_in_the_longest_pause_of_the_last_half() -> None:
    config = cut_at(window_s=10, part_pause_s=0.5)
    parts = [(True, 2.0), (False, 0.448), (True, 4.0), (False, 0.32), (True, 1.0), (False, 0.16), (True, 4.0)]
    speech = hops(*parts)
    first, second = split(speech, config)
    middle = len(hops(*parts[:3])) * 512 + 5 * 512
    assert bounds([first, second]) == [(0, middle, 0), (middle, len(speech) * 512, 0)]


def test_the_later_of_equal_pauses_is_cut() -> None:
    config = cut_at(window_s=10)
    parts = [(True, 6.0), (False, 0.32), (True, 1.0), (False, 0.32), (True, 4.0)]
    assert split(hops(*parts), config)[0].end == len(hops(*parts[:3])) * 512 + 5 * 512


def test_a_pause_across_the_end_of_the_window_is_cut_at_its_end() -> None:
    speech = [*[True] * 310, *[False] * 14, *[True] * 50]  # the window ends with hop 312.5, the pause's middle is 317
    assert bounds(split(speech, cut_at(window_s=10))) == [(0, 160000, 0), (160000, 374 * 512, 0)]


def test_without_a_pause_windows_overlap() -> None:
    windows = split([True] * 700, cut_at(window_s=10, overlap_s=2))
    assert bounds(windows) == [(0, 160000, 0), (128000, 288000, 32000), (256000, 358400, 32000)]


def test_the_closure_of_a_plosive_is_no_pause() -> None:
    closure = [False] * (SHORTEST_PAUSE // VAD_HOP - 1)
    windows = split([*[True] * 250, *closure, *[True] * 100], cut_at(window_s=10, overlap_s=2))
    assert [window.overlap for window in windows] == [0, 32000]


def test_the_last_samples_are_heard() -> None:
    pcm = ramp(10 * 512 + 100)
    (window,) = split([*[False] * 10, True], cut_at(), pcm)
    assert window.end == len(pcm)


def test_silence_is_forgotten() -> None:
    splitter = Splitter(ScriptedDetector([]), cut_at())
    for _ in range(100):
        assert splitter.push(np.zeros(16000, np.float32)) == []
        assert len(splitter._pcm) <= before(LATE_MOST * VAD_HOP) + VAD_HOP
    assert splitter.finish() == []


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[bool], TranscribeConfig, int]:
    runs = draw(st.lists(st.tuples(st.integers(1, 150), st.integers(1, 30)), max_size=12))
    speech = [decision for loud, quiet in runs for decision in [*[True] * loud, *[False] * quiet]]
    window_s = draw(st.sampled_from([1.0, 1.7, 3.0, 5.55]))
    share = st.floats(0, 0.4)
    config = cut_at(
        window_s=window_s,
        overlap_s=draw(share) * window_s,
        part_pause_s=max(0.1, draw(share) * window_s),
    )
    return speech, config, draw(st.integers(0, VAD_HOP - 1))


@given(cases(), st.integers(300, 40000))
def test_every_sample_of_speech_is_in_a_window(case: tuple[list[bool], TranscribeConfig, int], block: int) -> None:
    speech, config, more = case
    pcm = ramp(len(speech) * VAD_HOP + more)
    windows = split(speech, config, pcm, block)
    times_heard = np.zeros(len(pcm), int)
    for window in windows:
        assert 0 < len(window.pcm) <= int(config.window_s * 16000)
        assert np.array_equal(window.pcm, pcm[window.start : window.end])  # exact to the sample
        times_heard[window.start + window.overlap : window.end] += 1
    for one, after in pairwise(windows):
        assert one.overlap_after == after.overlap
        assert after.start >= one.end if not after.overlap else after.start == one.end - after.overlap
        assert after.end > one.end
    assert times_heard.max(initial=0) <= 1  # disjoint but for declared overlaps
    spoken = np.repeat(speech, VAD_HOP).astype(bool)
    assert times_heard[: len(spoken)][spoken].all()
    assert bounds(windows) == bounds(split(speech, config, pcm, len(pcm) + 1))  # whatever the blocks


@given(cases())
def test_pauses_that_part_are_dropped(case: tuple[list[bool], TranscribeConfig, int]) -> None:
    """All but the margins of a pause of `part_pause_s` is in no window."""
    speech, config, _ = case
    windows = split(speech, config)
    heard = np.zeros(len(speech) * VAD_HOP, bool)
    for window in windows:
        heard[window.start : window.end] = True
    quiet = 0
    for i, decision in enumerate([*speech, True]):
        if not decision:
            quiet += VAD_HOP
            continue
        began = i * VAD_HOP - quiet
        if quiet >= config.part_pause_s * 16000 and began:
            assert not heard[began + 4800 : i * VAD_HOP - 8000].any()  # margins of up to 0.3 and 0.5 s
        quiet = 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_s": 0.5}, "window_s is 0.5; expected at least 1 second"),
        ({"window_s": float("inf")}, "window_s is inf"),
        ({"window_s": 4.0}, r"overlap_s is 2.0; expected 0 to 1.6 \(40 % of window_s\)"),
        ({"overlap_s": -1.0}, "overlap_s is -1.0"),
        ({"part_pause_s": 0.0}, "part_pause_s is 0.0; expected 0.1 to 8"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"vad": "webrtc"}, "vad is 'webrtc'; expected 'auto', 'silero' or 'energy'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TranscribeConfig(**options)  # type: ignore[arg-type]
