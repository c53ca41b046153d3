"""Audio files: paths, pipes, bytes and open files become a header that was checked, and blocks of samples."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import BinaryIO

from salmonrun.runtime.config import Limits
from salmonrun.runtime.errors import AudioError, AudioNotFoundError
from salmonrun.runtime.exhausted import resources
from salmonrun.runtime.isolation.client import IsolatedFile
from salmonrun.runtime.sound_file import F64, OpenSound, SoundFile

DEFAULT_LIMITS = Limits()
FileSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

_LARGEST_BLOCK = 1 << 25  # samples of all channels: 256 MiB
_LARGEST_ISOLATED_BLOCK = 1 << 20  # that another process sends: so many are decoded in far less than the time there is
# What writers that cannot go back (ffmpeg and sox into a pipe, arecord) put where a length in bytes belongs.
_UNKNOWN_LENGTH = 0x7FFF0000
# libsndfile's log of WAV, AIFF and AU: the length of the samples by the header, and what it makes of it.
_CORRECTED_LENGTH = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_NOTICEABLE_S = 0.01  # of missing samples: less is padding of the last block


@dataclass
class AudioFile:
    """An open file whose header can be believed. Its samples are read by `blocks`, as often as one likes."""

    content: str | bytes  # a path, or all of it
    opened: OpenSound
    rate: int  # Hz
    channels: int
    frames: int  # that should be there: more than the header says where a decoder finds fewer
    claimed_frames: int  # by the header
    limits: Limits
    started: bool = False  # whether samples of `opened` were read

    def blocks(self, size: int = _LARGEST_BLOCK) -> Iterator[F64]:
        """Samples [N, C], full scale 1.0, at most `size` frames at once, fewer where channels are many.

        Raises:
            AudioError: it cannot be read to its end.
        """
        largest = _LARGEST_ISOLATED_BLOCK if self.limits.isolate_decoding else _LARGEST_BLOCK
        size, read = min(size, self.frames, largest // self.channels), 0
        # To open a file takes a tenth of reading a short one. But a decoder that was set back to the start need not
        # give the same samples again; one that starts anew does.
        fresh, self.started = not self.started, True
        with nullcontext(self.opened) if fresh else _opened(self.content, self.limits) as file:
            while True:
                try:
                    block = file.read(size)
                except AudioError as error:
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
def open_audio_file(
    source: FileSource, rate: int | None = None, limits: Limits = DEFAULT_LIMITS
) -> Iterator[AudioFile]:
    """Open a path, a pipe, an open binary file or the bytes of a file, and check its header.

    Nothing is allocated by what a header says before it was checked. Where the limits say so, libsndfile sees the file
    in a process of its own alone.

    Raises:
        AudioError: not audio, or not believable, or a `rate` is given, which files carry themselves.
        AudioNotFoundError: there is no such file.
    """
    if rate is not None:
        raise AudioError(f"sample_rate={rate} was given with a file, which carries its own; leave it out")
    content = held(source, limits)
    with _opened(content, limits) as file:
        _check_header(file, content, limits)
        yield AudioFile(content, file, file.rate, file.channels, file.frames, _claimed_frames(file), limits)


def held(source: FileSource, limits: Limits = DEFAULT_LIMITS) -> str | bytes:
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
        return _held_path(os.fspath(source), limits)
    if hasattr(source, "read"):
        return _read_whole(source, "the open file", limits)
    raise AudioError(
        f"audio is a {type(source).__name__}; expected a path, the bytes of a file, an open binary file, "
        "or a numpy array"
    )


def check_rate(rate: int, what: str = "sample_rate", limits: Limits = DEFAULT_LIMITS) -> None:
    """Refuse a rate at which nothing is recorded: it would be a mistake, and cost gigabytes or hours to resample.

    Raises:
        AudioError: below or above what the limits allow.
    """
    lowest, highest = limits.min_sample_rate, limits.max_sample_rate
    if not lowest <= rate <= highest:
        raise AudioError(f"{what} is {rate}; expected {lowest} to {highest} Hz")


def _held_path(path: str, limits: Limits) -> str | bytes:
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
        try:
            with open(path, "rb") as pipe:
                return _read_whole(pipe, f"the pipe {path!r}", limits)
        except OSError as error:
            raise AudioError(f"the pipe {path!r} cannot be read ({error.strerror})") from error
    return path


def _read_whole(file: BinaryIO, name: str, limits: Limits) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := _read_part(file, name):
        if not isinstance(part, bytes):
            raise AudioError(f"{name} gives {type(part).__name__}, not bytes: open it with mode 'rb'")
        parts.append(part)
        size += len(part)
        if size > limits.max_pipe_mib << 20:
            raise AudioError(
                f"{name} has more than {limits.max_pipe_mib} MiB; write it to a file, and pass its path, or raise "
                "Limits(max_pipe_mib=...)"
            )
    if not parts:
        raise AudioError(f"{name} is empty, or stands at its end; expected the content of an audio file")
    return b"".join(parts)


def _read_part(file: BinaryIO, name: str) -> bytes:
    try:
        return file.read(1 << 20)
    except (OSError, ValueError) as error:  # ValueError: it is closed, or text that is not UTF-8
        raise AudioError(f"{name} cannot be read ({error}); expected one that was opened with mode 'rb'") from error


@contextmanager
def _opened(content: str | bytes, limits: Limits) -> Iterator[OpenSound]:
    try:
        file: OpenSound = (
            IsolatedFile(content, limits.max_decoding_s, 8 * _LARGEST_ISOLATED_BLOCK)
            if limits.isolate_decoding
            else SoundFile(content)
        )
    except AudioError as error:
        _check_opens(content)
        raise AudioError(
            f"{_name(content)} is not audio that libsndfile can read ({error}); "
            "expected wav, flac, ogg or mp3: convert it, e.g. with ffmpeg -i INPUT output.wav"
        ) from error
    with closing(file):
        yield file


def _check_opens(content: str | bytes) -> None:
    """libsndfile does not say why it cannot open a file: whether anybody can."""
    if isinstance(content, str):
        with resources(f"audio file {content!r} cannot be opened"), suppress(PermissionError, FileNotFoundError):
            os.close(os.open(content, os.O_RDONLY | os.O_CLOEXEC))


def _check_header(file: OpenSound, content: str | bytes, limits: Limits) -> None:
    """Refuse what no recording has, before anything is made of that size."""
    name = _name(content)
    check_rate(file.rate, f"the sample rate of {name}", limits)
    if not 1 <= file.channels <= limits.max_channels:
        raise AudioError(
            f"{name} has {file.channels} channels; expected 1 to {limits.max_channels}: extract those to hear"
        )
    size, most = _size(content), limits.max_frames_per_byte
    if not 0 <= file.frames <= size * most:
        raise AudioError(
            f"the header of {name} says {file.frames} samples in {size} bytes; expected at most "
            f"{most} a byte: it is damaged, get it anew"
        )


def _claimed_frames(file: OpenSound) -> int:
    """Frames by the header; libsndfile itself hides those that are not there where samples have a fixed size."""
    frames = file.frames
    found = _CORRECTED_LENGTH.search(file.log)
    if not found:
        return frames
    claimed, actual = (int(length) for length in found.groups())
    if claimed >= _UNKNOWN_LENGTH or not actual:
        return frames
    return max(frames, round(frames * claimed / actual))


def _size(content: str | bytes) -> int:
    """In bytes."""
    if isinstance(content, bytes):
        return len(content)
    try:
        return os.path.getsize(content)
    except OSError as error:  # it has gone meanwhile
        raise AudioNotFoundError(f"audio file {content!r} does not exist any more") from error


def _name(content: str | bytes) -> str:
    return "the bytes given" if isinstance(content, bytes) else repr(content)
