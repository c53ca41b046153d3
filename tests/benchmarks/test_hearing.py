"""The measure of who is heard: scenes are repeatable, and what is counted is what it says."""

import numpy as np

from benchmarks.hearing.scenes import Scene, Spoken, scenes
from benchmarks.hearing.scores import score
from benchmarks.hearing.speech import EDGE_S, Sentence, level, to_level
from benchmarks.hearing.ways import Said
from salmonrun.runtime.audio import F32
from salmonrun.training.data.acoustics import trim

SECOND = 16_000


def voice(seed: int) -> F32:
    return np.random.default_rng(seed).standard_normal(SECOND, dtype=np.float32) * np.float32(0.1)


def scene(*texts: str) -> Scene:
    """A sentence a second, each two seconds after the one before."""
    spoken = tuple(Spoken(text, 3 * i * SECOND, (3 * i + 1) * SECOND) for i, text in enumerate(texts))
    return Scene("made up", np.zeros(3 * len(texts) * SECOND, np.float32), spoken)


def said(text: str, at_s: float, seconds: float = 1.0) -> Said:
    return Said(text, round(at_s * SECOND), round((at_s + seconds) * SECOND))


def test_scenes_are_repeatable_and_hold_their_sentences() -> None:
    sentences = [Sentence(f"number {i}", voice(i)) for i in range(4)]
    once, again = (scenes(sentences, 7, (2.0,), 3.0) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        assert (one.name, one.spoken) == (other.name, other.spoken)
        assert np.array_equal(one.pcm, other.pcm)
        assert one.pcm.dtype == np.float32
        assert np.abs(one.pcm).max() <= 1.01
    assert len({one.name for one in once}) == len(once)
    clean = once[0]
    for place, sentence in zip(clean.spoken, sentences, strict=True):
        assert place.text == sentence.text
        np.testing.assert_allclose(clean.pcm[place.start : place.end], sentence.pcm, atol=3e-3)  # the room's noise
    assert once[-1].spoken == ()


def test_all_understood() -> None:
    found = score(scene("one two", "three"), [said("one two", 0), said("three", 3)])
    assert (found.words, found.errors, found.lost, found.doubled, found.invented) == (3, 0, 0, 0, 0)


def test_a_sentence_without_most_of_its_words_is_lost() -> None:
    found = score(scene("one two three", "four five six"), [said("one", 0), said("four five", 3)])
    assert (found.errors, found.lost) == (3, 1)


def test_a_word_said_twice_is_doubled() -> None:
    found = score(scene("call anna today"), [said("call anna", 0), said("anna today", 0.5)])
    assert (found.errors, found.doubled) == (1, 1)


def test_a_text_far_from_every_sentence_is_invented() -> None:
    found = score(scene("one"), [said("one", 0.2), said("rain", 1.6)])
    assert (found.errors, found.invented) == (1, 1)
    alone = score(Scene("sounds", np.zeros(SECOND, np.float32), ()), [said("rain", 0), said(" ", 0.5)])
    assert (alone.words, alone.errors, alone.invented) == (0, 1, 1)


def test_delays_are_of_streams() -> None:
    found = score(scene("one"), [Said("one", 0, SECOND, shown_s=0.75, over_s=1.5)])
    assert (found.first_text_s, found.final_text_s) == ((0.75,), (0.5,))
    assert score(scene("one"), [said("one", 0)]).final_text_s == ()


def test_levels() -> None:
    quiet = to_level(voice(0), -40)
    assert abs(level(quiet) + 40) < 0.1
    padded = np.pad(quiet, SECOND)
    assert len(trim(padded, EDGE_S)) <= len(quiet) + 2 * 960
