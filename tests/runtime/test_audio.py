"""Audio in: formats, the published policy for channels, padding and resampling, and refusals that say what to do."""

import math
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr

from salmonrun.runtime.audio import SAMPLE_RATE, Audio, load_audio
from salmonrun.runtime.errors import AudioError, AudioNotFoundError, AudioTooLongError

F64 = npt.NDArray[np.float64]


def tone(seconds: float, rate: int = SAMPLE_RATE, hz: float = 440.0) -> F64:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def written(path: Path, samples: F64, rate: int = SAMPLE_RATE, **options: str) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [("wav", 2**-15), ("flac", 2**-15), ("ogg", 0.05), ("mp3", 0.05)], ids=lambda v: str(v)
)
def test_formats(tmp_path: Path, suffix: str, tolerance: float) -> None:
    samples = tone(2.0)
    audio = load_audio(written(tmp_path / f"a.{suffix}", samples))
    assert audio.pcm.dtype == np.float32
    assert audio.notes == ()
    assert (audio.source_rate, audio.source_channels) == (16000, 1)
    assert abs(audio.source_s - 2.0) < 0.1  # mp3 pads
    middle = slice(8000, 16000)
    if suffix == "mp3":  # its encoder delay is not removed by every libsndfile: compare levels
        assert np.sqrt(np.mean(audio.pcm[middle] ** 2)) == pytest.approx(0.5 / math.sqrt(2), abs=0.02)
    else:
        assert np.abs(audio.pcm[middle] - samples[middle]).max() <= tolerance


@pytest.mark.parametrize("as_string", [True, False])
def test_paths_and_bytes_are_the_same(speech: Path, as_string: bool) -> None:
    from_path = load_audio(str(speech) if as_string else speech)
    from_bytes = load_audio(speech.read_bytes())
    assert np.array_equal(from_path.pcm, from_bytes.pcm)
    assert from_path.source_s == from_bytes.source_s == pytest.approx(1.3, abs=0.05)


def test_16_bit_file_is_divided_by_32768(tmp_path: Path) -> None:
    stored = np.array([-32768, -1, 0, 1, 32767] * 4000, np.int16)
    soundfile.write(tmp_path / "a.wav", stored, SAMPLE_RATE, subtype="PCM_16")
    assert np.array_equal(load_audio(tmp_path / "a.wav").pcm, (stored / 32768).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32"])
def test_arrays(dtype: str) -> None:
    samples = tone(1.5)
    full_scale = {"int16": 2**15, "int32": 2**31}.get(dtype, 1)
    given = (samples * full_scale).astype(dtype)
    audio = load_audio(given, SAMPLE_RATE)
    assert audio.pcm.dtype == np.float32
    assert np.abs(audio.pcm - samples).max() <= 2**-15
    assert (audio.source_rate, audio.source_channels, audio.source_s, audio.notes) == (16000, 1, 1.5, ())


def test_array_is_not_changed() -> None:
    samples = tone(0.5).astype(np.float32)
    before = samples.copy()
    audio = load_audio(samples, SAMPLE_RATE)
    audio.pcm[:] = 0
    assert np.array_equal(samples, before)


def test_int32_is_divided_by_2_to_the_31() -> None:
    stored = np.array([-(2**31), -1, 0, 1, 2**31 - 1], np.int32)
    assert np.array_equal(load_audio(stored, SAMPLE_RATE).pcm[:5], (stored / 2**31).astype(np.float32))


def test_stereo_takes_channel_0_and_says_so(tmp_path: Path) -> None:
    left, right = tone(1.0), tone(1.0, hz=900.0)
    path = written(tmp_path / "a.wav", np.stack([left, right], axis=1), subtype="DOUBLE")
    audio = load_audio(path)
    assert np.array_equal(audio.pcm, left.astype(np.float32))
    assert audio.source_channels == 2
    assert audio.notes == ("channel 0 of 2 is used",)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
@pytest.mark.parametrize("samples", [50_000, 88_201, 96_000])
def test_resampling_is_librosas(rate: int, samples: int) -> None:
    signal = np.random.default_rng(0).uniform(-0.5, 0.5, samples)
    # librosa.resample(res_type="soxr_hq", fix=True)
    expected = soxr.resample(signal, rate, SAMPLE_RATE, quality="soxr_hq")
    length = int(np.ceil(samples * (float(SAMPLE_RATE) / rate)))
    expected = np.pad(expected, (0, max(0, length - len(expected))))[:length]
    audio = load_audio(signal, rate)
    assert len(audio.pcm) == length
    assert np.array_equal(audio.pcm, expected.astype(np.float32))
    assert audio.notes[-1] == f"{rate} Hz resampled to 16000 Hz"
    assert audio.source_rate == rate


@pytest.mark.parametrize("seconds", [0.01, 0.5, 0.9999])
def test_short_audio_is_padded_to_a_second(seconds: float) -> None:
    samples = tone(seconds)
    audio = load_audio(samples, SAMPLE_RATE)
    assert audio.duration_s == 1.0
    assert np.array_equal(audio.pcm[: len(samples)], samples.astype(np.float32))
    assert not audio.pcm[len(samples) :].any()
    assert audio.source_s == len(samples) / SAMPLE_RATE
    assert len(audio.notes) == 1
    assert "padded with zeros to 1 s" in audio.notes[0]


def test_padding_comes_before_resampling() -> None:
    samples = 0.5 * np.ones(4000)  # ends loud: padding after resampling would not ring across the edge
    audio = load_audio(samples, 8000)
    padded = np.pad(samples, (0, 4000))
    assert np.array_equal(audio.pcm, soxr.resample(padded, 8000, SAMPLE_RATE, "HQ").astype(np.float32))
    assert [note.split()[-2:] for note in audio.notes] == [["1", "s"], ["16000", "Hz"]]


def test_min_s_is_respected() -> None:
    assert load_audio(tone(0.1), SAMPLE_RATE, min_s=0.32).duration_s == 0.32


def test_one_sample_is_enough() -> None:
    assert load_audio(np.array([0.5]), SAMPLE_RATE).pcm[0] == 0.5


def test_everything_is_noted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.flac", np.stack([tone(0.2, 8000)] * 3, axis=1), 8000)
    notes = load_audio(path).notes
    assert len(notes) == 3
    assert "channel 0 of 3" in notes[0]
    assert "0.200 s padded" in notes[1]
    assert "8000 Hz resampled" in notes[2]


def test_audio_passes_through() -> None:
    audio = load_audio(tone(2.0), SAMPLE_RATE)
    assert load_audio(audio) is audio


# Refusals: each message has the value and the remedy.


@contextmanager
def refused(*fragments: str) -> Iterator[None]:
    with pytest.raises(AudioError) as caught:
        yield
    message = str(caught.value)
    assert all(fragment in message for fragment in fragments), f"{message!r} lacks one of {fragments}"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AudioNotFoundError, match="does not exist") as caught:
        load_audio(tmp_path / "gone.wav")
    assert "gone.wav" in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_folder(tmp_path: Path) -> None:
    with refused(str(tmp_path), "is a folder"):
        load_audio(tmp_path)


def test_text_named_wav(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("this is not sound\n" * 100)
    with refused("a.wav", "wav, flac, ogg or mp3", "ffmpeg"):
        load_audio(tmp_path / "a.wav")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    with refused("a.wav", "wav, flac, ogg or mp3"):
        load_audio(tmp_path / "a.wav")


def test_wav_without_samples(tmp_path: Path) -> None:
    with refused("0 samples", "at least one"):
        load_audio(written(tmp_path / "a.wav", np.zeros(0)))


@pytest.mark.parametrize(("content", "value"), [(b"", "is empty"), (b"RIFF" + bytes(40), "the bytes given")])
def test_bytes_that_are_no_file(content: bytes, value: str) -> None:
    with refused(value, "expected"):
        load_audio(content)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_empty_array(dtype: type) -> None:
    with refused("0 samples", "expected at least one"):
        load_audio(np.zeros(0, dtype), SAMPLE_RATE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    samples = tone(0.1)
    samples[123] = bad
    with refused("sample 123", str(bad), "clean"):
        load_audio(samples, SAMPLE_RATE)


def test_not_finite_in_a_file(tmp_path: Path) -> None:
    samples = tone(0.1)
    samples[7] = np.nan
    with refused("sample 7", "nan", "clean"):
        load_audio(written(tmp_path / "a.wav", samples, subtype="FLOAT"))


@pytest.mark.parametrize("shape", [(2, 100), (100, 1), ()])
def test_array_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    with refused(str(shape), "[N]", "array[:, 0]"):
        load_audio(np.zeros(shape), SAMPLE_RATE)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float16", "complex128", "bool", "object", ">f4"])
def test_array_of_the_wrong_dtype(dtype: str) -> None:
    samples = np.zeros(100, dtype)
    with refused(str(samples.dtype), "float32", "int16"):
        load_audio(samples, SAMPLE_RATE)


def test_array_without_a_rate() -> None:
    with refused("sample_rate=16000"):
        load_audio(tone(1.0))


@pytest.mark.parametrize("rate", [0, -16000, 999, 768_001])
def test_impossible_rates(rate: int) -> None:
    with refused(str(rate), "1000 to 768000"):
        load_audio(tone(0.1), rate)


def test_rate_with_a_file(speech: Path) -> None:
    with refused("sample_rate=16000", "leave it out"):
        load_audio(speech, 16000)


def test_rate_with_audio() -> None:
    with refused("sample_rate=8000"):
        load_audio(load_audio(tone(1.0), SAMPLE_RATE), 8000)


@pytest.mark.parametrize("source", [None, 3, ["a.wav"], {"a.wav"}, np.float32(0.5)])
def test_not_a_source(source: object) -> None:
    with refused(type(source).__name__, "a path"):
        load_audio(source)  # type: ignore[arg-type]


def test_integers_stored_as_floats() -> None:
    with refused("16384", "divide", "32768", "int16"):
        load_audio(tone(0.1, hz=4000) * 32768, SAMPLE_RATE)


def test_a_little_over_full_scale_is_not_refused() -> None:
    assert load_audio(tone(1.0) * 4, SAMPLE_RATE).peak_dbfs > 0


@pytest.mark.parametrize("source", ["array", "file", "audio"])
def test_too_long(tmp_path: Path, source: str) -> None:
    samples = tone(2.5)
    given: Path | Audio | F64 = samples
    if source == "file":
        given = written(tmp_path / "a.wav", samples)
    elif source == "audio":
        given = load_audio(samples, SAMPLE_RATE)
    rate = SAMPLE_RATE if source == "array" else None
    with pytest.raises(AudioTooLongError, match=r"2\.50 s long.*hears 2 s.*first\(2\)"):
        load_audio(given, rate, max_s=2)


@pytest.mark.parametrize("rate", [16000, 44100, 11025])
def test_exactly_the_window_is_not_too_long(rate: int) -> None:
    audio = load_audio(tone(2.0, rate), rate, max_s=2.0)
    assert load_audio(audio, max_s=2.0) is audio  # also after resampling


def test_long_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    data_bytes = 2 * SAMPLE_RATE * 3600  # an hour; sparse on disk
    header = b"RIFF" + struct.pack("<I", 36 + data_bytes) + b"WAVEfmt "
    header += struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
    path.write_bytes(header + b"data" + struct.pack("<I", data_bytes))
    with path.open("r+b") as file:
        file.truncate(44 + data_bytes)
    tracemalloc.start()
    try:
        with pytest.raises(AudioTooLongError, match=r"3600\.00 s"):
            load_audio(path, max_s=30)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20  # the samples alone are 440 MiB as float64


# Audio


def test_first_cuts_and_says_so() -> None:
    audio = load_audio(tone(3.0), SAMPLE_RATE)
    cut = audio.first(1.25)
    assert np.array_equal(cut.pcm, audio.pcm[:20000])
    assert cut.notes == ("cut from 3.00 s to 1.25 s on request",)
    assert cut.source_s == 3.0
    assert audio.notes == ()


@pytest.mark.parametrize("seconds", [3.0, 5.0])
def test_first_of_shorter_audio_is_itself(seconds: float) -> None:
    audio = load_audio(tone(3.0), SAMPLE_RATE)
    assert audio.first(seconds) is audio


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_first_of_nothing_is_refused(seconds: float) -> None:
    with pytest.raises(AudioError, match="seconds"):
        load_audio(tone(3.0), SAMPLE_RATE).first(seconds)


@pytest.mark.parametrize(("peak", "expected"), [(1.0, 0.0), (0.1, -20.0), (-0.5, -6.0206), (0.0, -math.inf)])
def test_peak_dbfs(peak: float, expected: float) -> None:
    pcm = np.zeros(100, np.float32)
    pcm[50] = peak
    assert Audio(pcm, 16000, 1, 1.0).peak_dbfs == pytest.approx(expected, abs=1e-3)
