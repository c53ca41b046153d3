"""Recordings that are kept: how many, how long, and never one too few while somebody asks."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from salmonrun.runtime import Engine, GenerationConfig, Heard
from salmonrun.runtime.errors import BusyError
from salmonrun.runtime.server.page import uploads
from salmonrun.runtime.server.page.kept import KeptRecordings


class Ears:
    """Hears recordings with an engine, and counts."""

    def __init__(self, engine: Engine, speech: Path) -> None:
        self._engine = engine
        self._speech = speech
        self.open = self.times = 0

    @contextmanager
    def __call__(self) -> Iterator[Heard]:
        self.times += 1
        with self._engine.listen(self._speech) as heard:
            self.open += 1
            yield heard
        self.open -= 1


@pytest.fixture
def ears(tiny_engine: Engine, speech: Path) -> Ears:
    return Ears(tiny_engine, speech)


def test_one_is_heard_once_for_each_visitor_and_bundle(ears: Ears) -> None:
    kept = KeptRecordings()
    for visitor, bundle, path, anew in [
        ("a", 0, "x", True),
        ("a", 0, "x", False),
        ("a", 1, "x", True),
        ("b", 0, "x", True),
    ]:
        with kept.heard(visitor, bundle, path, ears) as (heard, fresh):
            assert fresh == anew
            assert heard.ask(task="asr", config=GenerationConfig(max_new_tokens=2)).token_ids
    with kept.heard("a", 0, "y", ears):
        assert (ears.open, len(kept)) == (3, 3)  # x of a's first bundle is no longer kept
    kept.leave("a")
    assert (ears.open, len(kept)) == (1, 1)
    kept.close()
    assert ears.open == 0


def test_hearing_has_its_times(tiny_engine: Engine, speech: Path) -> None:
    with tiny_engine.listen(speech) as heard:
        stages = heard.timings.stages
        assert {"audio", "features", "whisper", "qformer", "prefill"} <= set(stages)
        assert heard.timings.audio_s == pytest.approx(1.3, abs=0.1)
        assert not {"whisper", "audio"} & set(heard.ask(task="asr").timings.stages)


def test_the_least_used_go_first(ears: Ears) -> None:
    now = [0.0]
    kept = KeptRecordings(most=2, idle_s=10, clock=lambda: now[0])
    for visitor in "abc":
        now[0] += 1
        with kept.heard(visitor, 0, "x", ears):
            pass
    assert (len(kept), ears.open) == (2, 2)
    now[0] = 8.0
    with kept.heard("b", 0, "x", ears) as (_, anew):
        assert not anew
    now[0] = 13.0  # c was used at 3, b at 8
    kept.sweep()
    assert len(kept) == 1
    with kept.heard("a", 0, "x", ears) as (_, anew):
        assert anew


def test_what_is_being_asked_about_stays(ears: Ears) -> None:
    kept = KeptRecordings(most=0, idle_s=0)
    with kept.heard("a", 0, "x", ears) as (heard, _):
        kept.sweep()
        kept.leave("a")
        kept.close()
        assert ears.open == 1
        assert heard.ask(task="asr", config=GenerationConfig(max_new_tokens=2)).token_ids
    assert ears.open == 0


def test_memory_that_is_full_is_tried_again_without_the_others(ears: Ears) -> None:
    kept = KeptRecordings()
    with kept.heard("a", 0, "x", ears):
        pass

    @contextmanager
    def full() -> Iterator[Heard]:
        if ears.open:
            raise BusyError("no room")
        with ears() as heard:
            yield heard

    with kept.heard("b", 0, "x", full):
        assert (ears.open, len(kept)) == (1, 1)


def test_files_are_kept_for_a_while_and_as_many_as_fit(tmp_path: Path) -> None:
    for number, age in enumerate((5000, 3000, 2000, 1000)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "talk.wav").write_bytes(bytes(10))
        os.utime(folder / "talk.wav", (time.time() - age,) * 2)
    uploads.used(str(tmp_path / "1" / "talk.wav"))
    uploads.sweep(tmp_path, age_s=3600, most_bytes=20)
    assert sorted(file.parent.name for file in tmp_path.rglob("*.wav")) == ["1", "3"]
