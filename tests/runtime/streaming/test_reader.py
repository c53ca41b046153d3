"""Reading bit by bit gives the samples that reading at once gives."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from salmonrun.runtime.audio import Audio, AudioSource, load_audio
from salmonrun.runtime.errors import AudioError, AudioNotFoundError
from salmonrun.runtime.longform.reader import PcmReader


def noise(count: int, seed: int = 0) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, 0.1, count)


def read(source: AudioSource | Audio, rate: int | None = None) -> npt.NDArray[np.float32]:
    blocks = list(PcmReader(source, rate).blocks())
    assert all(block.dtype == np.float32 for block in blocks)
    return np.concatenate(blocks)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 16001, 22050, 44100, 48000])
@pytest.mark.parametrize("seconds", [0.01, 1.0, 3.7])
def test_arrays_are_read_as_at_once(rate: int, seconds: float) -> None:
    samples = noise(int(seconds * rate) + 1)
    assert np.array_equal(read(samples, rate), load_audio(samples, rate, min_s=0.0).pcm)
    stored = np.round(samples * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
    assert np.array_equal(read(stored, rate), load_audio(stored, rate, min_s=0.0).pcm)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_files_are_read_as_at_once(tmp_path: Path, suffix: str, rate: int) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([noise(3 * rate + 7), noise(3 * rate + 7, 1)], axis=1), rate)
    reader = PcmReader(path)
    assert (reader.rate, reader.channels) == (rate, 2)
    whole = load_audio(path, min_s=0.0)
    assert reader.duration_s == whole.source_s
    for source in (path, path.read_bytes()):
        # The mp3 decoder itself rounds differently when it is read in pieces.
        assert np.abs(read(source) - whole.pcm).max() <= (1e-6 if suffix == "mp3" else 0)


def test_an_audio_is_read_as_it_is() -> None:
    audio = load_audio(noise(50000), 44100)
    assert np.array_equal(read(audio), audio.pcm)


def test_blocks_are_a_second() -> None:
    assert [len(block) for block in PcmReader(noise(40000), 16000).blocks()] == [16000, 16000, 8000]


def test_samples_are_numbered_from_the_beginning() -> None:
    samples = noise(100_000)
    samples[70_000] = np.nan
    blocks = PcmReader(samples, 16000).blocks()
    assert len(next(blocks)) == 16000
    with pytest.raises(AudioError, match="sample 70000 is nan"):
        list(blocks)


def test_what_load_audio_refuses_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(AudioNotFoundError, match="does not exist"):
        PcmReader(tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(AudioError, match="not audio that libsndfile can read"):
        PcmReader(tmp_path / "text.wav")
    with pytest.raises(AudioError, match="an array needs sample_rate="):
        PcmReader(noise(10))
    with pytest.raises(AudioError, match="expected \\[N\\], one channel"):
        PcmReader(noise(10).reshape(2, 5), 16000)
    with pytest.raises(AudioError, match="the audio is empty"):
        PcmReader(noise(0), 16000)
    with pytest.raises(AudioError, match="was given with a file"):
        PcmReader(b"RIFF", 16000)
    with pytest.raises(AudioError, match="was given with an Audio"):
        PcmReader(load_audio(noise(10), 16000), 16000)


def test_integers_stored_as_floats_are_refused() -> None:
    with pytest.raises(AudioError, match="divide 16-bit values by 32768"):
        read(noise(100) * 1e5, 16000)
