"""Files that are cut off, that lie, that are no files, and those that come through a pipe: read or refused in words."""

import contextlib
import io
import math
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from salmonrun.runtime import audio_file
from salmonrun.runtime.audio import Audio, load_audio
from salmonrun.runtime.config import Limits
from salmonrun.runtime.errors import AudioError, AudioNotFoundError, AudioTooLongError, ConfigError
from salmonrun.runtime.longform.reader import PcmReader


def noise(count: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(0).normal(0, 0.1, count)


def stored(container: str, subtype: str | None = None, count: int = 39200, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(count), rate, format=container, subtype=subtype)
    return file.getvalue()


def wav(rate: int = 16000, channels: int = 1, samples: int = 100) -> bytes:
    data = bytes(2 * samples * channels)
    byte_rate = min(2 * rate * channels, 2**32 - 1)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, byte_rate, 2 * channels, 16)
    chunks = form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def read(source: Any) -> tuple[npt.NDArray[np.float32], list[str]]:
    """All that a PcmReader reads, and its notes after that."""
    reader = PcmReader(source)
    return np.concatenate(list(reader.blocks())), reader.notes


# Cut off


@pytest.mark.parametrize("container", ["WAV", "AIFF", "AU", "MP3"])
def test_a_file_that_is_cut_off_says_so(container: str) -> None:
    whole = stored(container)
    cut = whole[: len(whole) // 2]
    audio = load_audio(cut)
    (note,) = audio.notes
    assert note == f"the file ends after {audio.source_s:.2f} s; its header says 2.45 s"
    assert 0.9 < audio.source_s < 1.3
    reader = PcmReader(cut)
    for _ in range(2):  # the note is there once, however often it is read
        assert sum(map(len, reader.blocks())) == len(audio.pcm)
        assert reader.notes == [note]
    assert load_audio(whole).notes == ()
    assert read(whole)[1] == []


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF - 36, 0x7FFF0000])
def test_a_wav_written_into_a_pipe_is_not_cut_off(length: int) -> None:
    content = bytearray(stored("WAV"))
    content[40:44] = struct.pack("<I", length)
    assert load_audio(bytes(content)).notes == ()


def test_a_flac_that_is_cut_off_says_where() -> None:
    whole = stored("FLAC", count=16000 * 5)
    with pytest.raises(AudioError, match=r"cannot be read after 2\.00 s .* says 5\.00 s: it is damaged or cut off"):
        read(whole[: len(whole) // 2])


# Headers that lie


@pytest.mark.parametrize("rate", [1, 999, 768_001, 10**9, 2**31 - 1])
def test_absurd_rates_of_files_are_refused_before_they_are_resampled(rate: int) -> None:
    message = f"the sample rate of the bytes given is {rate}; expected 1000 to 768000 Hz"
    for open_file in (load_audio, PcmReader):
        with pytest.raises(AudioError, match=message):
            open_file(wav(rate))


@pytest.mark.parametrize("rate", [1000, 768_000])
def test_the_widest_rates(rate: int) -> None:
    length = math.ceil(rate // 10 * 16000 / rate)
    assert len(load_audio(wav(rate, samples=rate // 10), min_s=0.0).pcm) == len(read(wav(rate, samples=rate // 10))[0])
    assert len(load_audio(wav(rate, samples=rate // 10), min_s=0.0).pcm) == length


def test_channels_have_a_limit() -> None:
    assert load_audio(wav(channels=64)).source_channels == 64
    for open_file in (load_audio, PcmReader):
        with pytest.raises(AudioError, match="has 65 channels; expected 1 to 64"):
            open_file(wav(channels=65))


def test_more_samples_than_a_file_can_hold_are_refused_before_they_are_allocated() -> None:
    content = bytearray(stored("FLAC"))
    content[21] |= 0x0F  # the 36 bits of STREAMINFO that count samples
    content[22:26] = b"\xff" * 4
    tracemalloc.start()
    try:
        for open_file in (load_audio, PcmReader):
            with pytest.raises(AudioError, match=rf"says {2**36 - 1} samples in {len(content)} bytes; .* damaged"):
                open_file(bytes(content))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_the_densest_flac_is_believed() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(10**6), 16000, format="FLAC", compression_level=1.0)
    assert load_audio(file.getvalue(), min_s=0).source_s == 62.5


def test_what_a_file_may_claim_is_a_setting() -> None:
    refused = {
        Limits(min_sample_rate=16_001): "sample rate of the bytes given is 16000; expected 16001 to 768000 Hz",
        Limits(max_sample_rate=8000): "sample rate of the bytes given is 16000; expected 1000 to 8000 Hz",
        Limits(max_channels=1): "has 2 channels; expected 1 to 1",
        Limits(max_frames_per_byte=1): "says 300000 samples in .* bytes; expected at most 1 a byte",
    }
    content = io.BytesIO()
    soundfile.write(content, np.zeros((300_000, 2)), 16_000, format="FLAC")
    for limits, message in refused.items():
        for open_file in (load_audio, PcmReader):
            with pytest.raises(AudioError, match=message):
                open_file(content.getvalue(), limits=limits)
    with pytest.raises(AudioTooLongError, match="300000 samples, which take 2 MiB; the limit is 1: let transcribe"):
        load_audio(content.getvalue(), limits=Limits(max_samples_mib=1))
    assert load_audio(content.getvalue()).source_s == 18.75
    assert load_audio(wav(channels=65), limits=Limits(max_channels=65)).source_channels == 65


def test_limits_that_cannot_be() -> None:
    for name in ("min_sample_rate", "max_channels", "max_frames_per_byte", "max_pipe_mib", "max_samples_mib"):
        with pytest.raises(ConfigError, match=f"{name} is 0; it must be at least 1"):
            Limits(**{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_sample_rate is 999; expected at least min_sample_rate, 1000"):
        Limits(max_sample_rate=999)
    with pytest.raises(ConfigError, match=r"max_decoding_s is 0\.0; it must be above 0"):
        Limits(max_decoding_s=0.0)


def test_memory_that_is_not_there_is_an_audio_error(tmp_path: Path) -> None:
    """The header of a small file claims 160 MB truly; this process may have 100 MB more than it has."""
    soundfile.write(tmp_path / "zeros.flac", np.zeros(20_000_000, np.int16), 16_000)
    code = """
import resource, sys
from salmonrun.runtime import load_audio
from salmonrun.runtime.errors import AudioError
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 100_000_000,) * 2)
try:
    load_audio(sys.argv[1])
except AudioError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "zeros.flac")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot be read after 0.00 s (Unable to allocate 153. MiB" in done.stdout


# Formats


def test_gsm_is_read_by_both_readers_alike() -> None:
    content = stored("WAV", "GSM610", 20_000, 8000)
    audio = load_audio(content, min_s=0.0)
    assert np.array_equal(audio.pcm, read(content)[0])
    assert audio.source_s == pytest.approx(2.5, abs=0.08)  # two blocks of 40 ms
    assert np.abs(audio.pcm).max() > 0.05


def test_a_large_file_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_audio(stored("WAV"))
    monkeypatch.setattr(audio_file, "_LARGEST_BLOCK", 1000)
    assert np.array_equal(load_audio(stored("WAV")).pcm, whole.pcm)


def test_raw_has_no_header(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(100))
    with pytest.raises(AudioError, match=r"a\.raw' is not audio that libsndfile can read"):
        load_audio(tmp_path / "a.raw")


# What is not a path


@pytest.mark.parametrize("kind", [bytearray, memoryview, io.BytesIO])
def test_bytes_of_all_kinds(kind: Any) -> None:
    content = stored("FLAC")
    expected = load_audio(content)
    assert np.array_equal(load_audio(kind(content)).pcm, expected.pcm)
    assert np.array_equal(read(kind(content))[0], expected.pcm)


def test_an_open_file_is_read_from_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"prefix" + stored("WAV"))
    with (tmp_path / "a").open("rb") as file:
        file.seek(6)
        assert np.array_equal(load_audio(file).pcm, load_audio(stored("WAV")).pcm)
        with pytest.raises(AudioError, match="the open file is empty, or stands at its end"):
            load_audio(file)


def test_a_file_opened_as_text_is_refused() -> None:
    with pytest.raises(AudioError, match="gives str, not bytes: open it with mode 'rb'"):
        load_audio(io.StringIO("RIFF"))  # type: ignore[arg-type]


def test_an_open_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for closed, message in (False, r"\(read\)"), (True, "closed file"):
        file = (tmp_path / "a").open("rb" if closed else "wb")
        if closed:
            file.close()
        with pytest.raises(AudioError, match=f"the open file cannot be read .*{message}.*opened with mode 'rb'"):
            load_audio(file)
        file.close()


def load_through(pipe: Path, content: bytes, limits: Limits = Limits()) -> Audio:  # noqa: B008
    def write() -> None:
        with contextlib.suppress(BrokenPipeError):  # what is too much is not taken
            pipe.write_bytes(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        return load_audio(pipe, limits=limits)
    finally:
        writer.join()


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in the file system")
def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    content = stored("WAV")
    assert np.array_equal(load_through(pipe, content).pcm, load_audio(content).pcm)
    larger = stored("WAV", "DOUBLE", 2**17 + 1)
    with pytest.raises(AudioError, match="pipe' has more than 1 MiB; write it to a file"):
        load_through(pipe, larger, Limits(max_pipe_mib=1))


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_process_substitution(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(stored("WAV"))
    code = "import sys; from salmonrun.runtime import load_audio; print(load_audio(sys.argv[1]).source_s)"
    command = ["bash", "-c", '"$0" -c "$1" <(cat "$2")', sys.executable, code, str(tmp_path / "a.wav")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "2.45"


# No files


def test_a_folder_a_device_and_nothing(tmp_path: Path) -> None:
    for open_file in (load_audio, PcmReader):
        with pytest.raises(AudioError, match="is a folder; expected an audio file") as caught:
            open_file(tmp_path)
        assert not isinstance(caught.value, FileNotFoundError)
        with pytest.raises(AudioError, match=f"{os.devnull}' is a device or a socket; expected an audio file"):
            open_file(os.devnull)
        for gone in ("gone.wav", "a\0b", "x" * 5000):
            with pytest.raises(AudioNotFoundError, match="does not exist"):
                open_file(gone)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.wav").write_bytes(stored("WAV"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # to root, everything is readable
    with pytest.raises(AudioError, match=r"a\.wav' may not be read \(Permission denied\): change its permissions"):
        load_audio(tmp_path / "a.wav")


def test_a_folder_that_may_not_be_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(AudioError, match=r"'closed/a\.wav' may not be read \(Permission denied\)"):
        load_audio("closed/a.wav")
