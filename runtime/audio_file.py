"""Audio files: paths, pipes, bytes and open files become a header that was checked, and blocks of samples."""

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from salmonrun.runtime.errors import AudioError, AudioNotFoundError

F64 = npt.NDArray[np.float64]
FileSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

# Below, nothing of speech is left, and 16 samples are made of one; above, no converter records.
_RATES = (1000, 768_000)  # Hz
_MOST_CHANNELS = 64  # the largest microphone arrays in use have as many
# FLAC, the densest, packs 65,535 equal samples into a frame of 14 bytes.
_MOST_FRAMES_PER_BYTE = 8192
_LARGEST_PIPE = 1 << 30  # bytes; what cannot be read twice is held in memory
_LARGEST_BLOCK = 1 << 25  # samples of all channels: 256 MiB
# What writers that cannot go back (ffmpeg and sox into a pipe, arecord) put where a length in bytes belongs.
_UNKNOWN_LENGTH = 0x7FFF0000
# libsndfile's log of WAV, AIFF and AU: the length of the samples by the header, and what it makes of it.
_CORRECTED_LENGTH = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_NOTICEABLE_S = 0.01  # of missing samples: less is padding of the last block


@dataclass
class AudioFile:
    """An open file whose header can be believed. Its samples are read by `blocks`, as often as one likes."""

    content: str | bytes  # a path, or all of it
    opened: soundfile.SoundFile
    rate: int  # Hz
    channels: int
    frames: int  # that should be there: more than the header says where a decoder finds fewer
    claimed_frames: int  # by the header
    started: bool = False  # whether samples of `opened` were read

    def blocks(self, size: int = _LARGEST_BLOCK) -> Iterator[F64]:
        """Samples [N, C], full scale 1.0, at most `size` frames at once, fewer where channels are many.

        Raises:
            AudioError: it cannot be read to its end.
        """
        size, read = min(size, self.frames, _LARGEST_BLOCK // self.channels), 0
        # To open a file takes a tenth of reading a short one. But a decoder that was set back to the start need not
        # give the same samples again; one that starts anew does.
        fresh, self.started = not self.started, True
        with nullcontext(self.opened) if fresh else _opened(self.content) as file:
            while True:
                try:
                    block = file.read(size, dtype="float64", always_2d=True)
                except soundfile.SoundFileError as error:
                    raise AudioError(
                        f"{_name(self.content)} cannot be read after {read / self.rate:.2f} s ({error}); its header "
                        f"says {self.claimed_frames / self.rate:.2f} s: it is damaged or cut off, get it anew"
                    ) from error
                if not len(block):
                    return
                read += len(block)
                yield block

    def cut_off(self, read: int, strict: bool) -> str:
        """A note if the file ended after so many frames, though its header says more; empty if not.

        Raises:
            AudioError: it did, and `strict` is set.
        """
        if self.claimed_frames - read < _NOTICEABLE_S * self.rate:
            return ""
        note = f"the file ends after {read / self.rate:.2f} s; its header says {self.claimed_frames / self.rate:.2f} s"
        if strict:
            raise AudioError(f"{note}: strict refuses a recording that is cut off; get it anew, or leave out strict")
        return note


@contextmanager
def open_audio_file(source: FileSource, rate: int | None = None) -> Iterator[AudioFile]:
    """Open a path, a pipe, an open binary file or the bytes of a file, and check its header.

    Nothing is allocated by what a header says before it was checked.

    Raises:
        AudioError: not audio, or not believable, or a `rate` is given, which files carry themselves.
        AudioNotFoundError: there is no such file.
    """
    if rate is not None:
        raise AudioError(f"sample_rate={rate} was given with a file, which carries its own; leave it out")
    content = held(source)
    size = len(content) if isinstance(content, bytes) else os.path.getsize(content)
    with _opened(content) as file:
        _check_header(file, _name(content), size)
        yield AudioFile(content, file, file.samplerate, file.channels, file.frames, _claimed_frames(file))


def held(source: FileSource) -> str | bytes:
    """What can be read more than once: the path of a file, or all bytes of anything else.

    Open files are read from where they stand, pipes to their end.

    Raises:
        AudioError: no source, no file, not readable, or more than memory should hold.
        AudioNotFoundError: there is no such file.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise AudioError(f"the {type(source).__name__} given is empty; expected the content of an audio file")
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        return _held_path(os.fspath(source))
    if hasattr(source, "read"):
        return _read_whole(source, "the open file")
    raise AudioError(
        f"audio is a {type(source).__name__}; expected a path, the bytes of a file, an open binary file, "
        "or a numpy array"
    )


def check_rate(rate: int, what: str = "sample_rate") -> None:
    """Refuse a rate at which nothing is recorded: it would be a mistake, and cost gigabytes or hours to resample.

    Raises:
        AudioError: below 1 kHz or above 768 kHz.
    """
    lowest, highest = _RATES
    if not lowest <= rate <= highest:
        raise AudioError(f"{what} is {rate}; expected {lowest} to {highest} Hz")


def _held_path(path: str) -> str | bytes:
    try:
        mode = os.stat(path).st_mode
    except PermissionError as error:
        raise AudioError(f"audio file {path!r} may not be read ({error.strerror}): change its permissions") from error
    except (OSError, ValueError) as error:  # ValueError: names that no file system has
        raise AudioNotFoundError(f"audio file {path!r} does not exist") from error
    if stat.S_ISDIR(mode):
        raise AudioError(f"{path!r} is a folder; expected an audio file, e.g. one of those in it")
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        raise AudioError(f"{path!r} is a device or a socket; expected an audio file or a pipe")
    if not os.access(path, os.R_OK):
        raise AudioError(f"audio file {path!r} may not be read (Permission denied): change its permissions")
    if stat.S_ISFIFO(mode):
        with open(path, "rb") as pipe:
            return _read_whole(pipe, f"the pipe {path!r}")
    return path


def _read_whole(file: BinaryIO, name: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := file.read(1 << 20):
        if not isinstance(part, bytes):
            raise AudioError(f"{name} gives {type(part).__name__}, not bytes: open it with mode 'rb'")
        parts.append(part)
        size += len(part)
        if size > _LARGEST_PIPE:
            raise AudioError(f"{name} has more than {_LARGEST_PIPE} bytes; write it to a file, and pass its path")
    if not parts:
        raise AudioError(f"{name} is empty, or stands at its end; expected the content of an audio file")
    return b"".join(parts)


@contextmanager
def _opened(content: str | bytes) -> Iterator[soundfile.SoundFile]:
    try:
        file = soundfile.SoundFile(io.BytesIO(content) if isinstance(content, bytes) else content)
    except (soundfile.SoundFileError, UnicodeEncodeError, TypeError) as error:  # TypeError: .raw has no header
        raise AudioError(
            f"{_name(content)} is not audio that libsndfile can read ({error}); "
            "expected wav, flac, ogg or mp3: convert it, e.g. with ffmpeg -i INPUT output.wav"
        ) from error
    with file:
        yield file


def _check_header(file: soundfile.SoundFile, name: str, size: int) -> None:
    """Refuse what no recording has, before anything is made of that size."""
    check_rate(file.samplerate, f"the sample rate of {name}")
    if not 1 <= file.channels <= _MOST_CHANNELS:
        raise AudioError(f"{name} has {file.channels} channels; expected 1 to {_MOST_CHANNELS}: extract those to hear")
    if file.frames > size * _MOST_FRAMES_PER_BYTE:
        raise AudioError(
            f"the header of {name} says {file.frames} samples in {size} bytes; expected at most "
            f"{_MOST_FRAMES_PER_BYTE} a byte: it is damaged, get it anew"
        )


def _claimed_frames(file: soundfile.SoundFile) -> int:
    """Frames by the header; libsndfile itself hides those that are not there where samples have a fixed size."""
    frames: int = file.frames
    found = _CORRECTED_LENGTH.search(file.extra_info)
    if not found:
        return frames
    claimed, actual = (int(length) for length in found.groups())
    if claimed >= _UNKNOWN_LENGTH or not actual:
        return frames
    return max(frames, round(frames * claimed / actual))


def _name(content: str | bytes) -> str:
    return "the bytes given" if isinstance(content, bytes) else repr(content)
