"""Speech to measure with: any length of it, and where it begins."""

import io

import numpy as np
import pytest
import soundfile

from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.latency.recording import Recording, onset_s, wav
from tests.helpers.answers import noise


def test_the_story_that_comes_along() -> None:
    story = Recording.load(None).pcm
    assert len(story) == pytest.approx(30 * SAMPLE_RATE, abs=SAMPLE_RATE)
    assert np.abs(story).max() > 0.1
    assert onset_s(story) < 1.0


def test_it_begins_anew() -> None:
    recording = Recording(np.arange(10 * 1600, dtype=np.float32))
    np.testing.assert_array_equal(recording.cut(0.5), np.arange(8000))
    np.testing.assert_array_equal(recording.cut(0.5, 0.75), [*range(12000, 16000), *range(4000)])
    np.testing.assert_array_equal(recording.cut(2.0, 3.0), [*range(16000), *range(16000)])


@pytest.mark.parametrize(("subtype", "loudest", "tolerance"), [("PCM_16", 0.9, 2**-15), ("FLOAT", 4.0, 0.0)])
def test_a_file_holds_the_same(subtype: str, loudest: float, tolerance: float) -> None:
    pcm = noise(0.5)
    pcm *= loudest / np.abs(pcm).max()
    read, rate = soundfile.read(io.BytesIO(wav(pcm, subtype)), dtype="float32")  # type: ignore[arg-type]
    assert rate == SAMPLE_RATE
    np.testing.assert_allclose(read, pcm, rtol=0, atol=tolerance)


@pytest.mark.parametrize("quiet", [0.0, 0.001])
def test_onset(quiet: float) -> None:
    rng = np.random.default_rng(0)
    pcm = np.concatenate([quiet * rng.standard_normal(8000), 0.3 * rng.standard_normal(8000)]).astype(np.float32)
    assert onset_s(pcm) == 0.5
    assert onset_s(pcm[8000:]) == 0.0
