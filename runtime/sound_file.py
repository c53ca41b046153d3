"""What libsndfile makes of a file, in this process: a header and samples, or an AudioError that says why not."""

import io
from typing import Protocol

import numpy as np
import numpy.typing as npt
import soundfile

from salmonrun.runtime.errors import AudioError

F64 = npt.NDArray[np.float64]


class OpenSound(Protocol):
    """An open file, wherever it is decoded. Nothing of it is checked yet."""

    rate: int  # Hz
    channels: int
    frames: int
    log: str  # what libsndfile noted while it read the header

    def read(self, frames: int) -> F64:
        """The next samples [N, C], full scale 1.0, at most so many frames; none at the end.

        Raises:
            AudioError: it cannot be read further; the message is the reason alone.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class SoundFile:
    """An open file that is decoded in this process.

    Args:
        source: a path, the bytes of a file, or a descriptor, which stays open.

    Raises:
        AudioError: libsndfile does not take it; the message is the reason alone.
    """

    def __init__(self, source: str | bytes | int) -> None:
        # Whatever a damaged file makes of libsndfile and its binding (its own error, but also ValueError, TypeError,
        # OverflowError, MemoryError), it is the file that cannot be read.
        try:
            file = _Content(source) if isinstance(source, bytes) else source
            self._file = soundfile.SoundFile(file, closefd=False)
            self.rate, self.channels, self.frames = self._file.samplerate, self._file.channels, self._file.frames
            self.log: str = self._file.extra_info
        except Exception as error:
            raise AudioError(_reason(error)) from error

    def read(self, frames: int) -> F64:
        """See `OpenSound.read`."""
        try:
            block: F64 = self._file.read(frames, dtype="float64", always_2d=True)
        except Exception as error:
            raise AudioError(_reason(error)) from error
        return block

    def close(self) -> None:
        """Let go of it."""
        self._file.close()


class _Content(io.BytesIO):
    """Bytes that may be asked for what stands in front of them, as damaged files have it: that is nowhere."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Where it stands then; an exception would be printed, since it cannot pass libsndfile."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _reason(error: Exception) -> str:
    """An error in a line, without the file's name."""
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
