"""A recording of any length as 16 kHz PCM, read a second at a time."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import soxr

from salmonrun.runtime.audio import (
    F32,
    SAMPLE_RATE,
    Audio,
    AudioSource,
    check_array,
    open_audio_file,
    refuse_empty,
    refuse_unusable,
    to_full_scale,
)
from salmonrun.runtime.errors import AudioError

F64 = npt.NDArray[np.float64]


class PcmReader:
    """Where a recording comes from. Its header is read at once, its samples by `blocks`, of which no more than a
    second is held at a time.

    Args:
        source: path, bytes of a file, a 1-D float or int16 array with `sample_rate`, or an Audio.
        sample_rate: of an array, in Hz; files carry their own.

    Raises:
        AudioError: empty, not audio, or an array without a rate.
    """

    def __init__(self, source: AudioSource | Audio, sample_rate: int | None = None) -> None:
        if isinstance(source, Audio):
            if sample_rate is not None:
                raise AudioError(
                    f"sample_rate={sample_rate} was given with an Audio, which is at 16000 Hz; leave it out"
                )
            source, sample_rate = source.pcm, SAMPLE_RATE
        self._source = source
        if isinstance(source, np.ndarray):
            self.rate, self.channels, self.frames = check_array(source, sample_rate), 1, len(source)
        else:
            with open_audio_file(source, sample_rate) as file:
                self.rate, self.channels, self.frames = file.samplerate, file.channels, file.frames
        refuse_empty(self.frames)

    @property
    def notes(self) -> list[str]:
        """What is done to the recording: channels dropped, resampled."""
        notes = [f"channel 0 of {self.channels} is used"] if self.channels > 1 else []
        if self.rate != SAMPLE_RATE:
            notes.append(f"{self.rate} Hz resampled to {SAMPLE_RATE} Hz")
        return notes

    @property
    def duration_s(self) -> float:
        """Seconds of the recording, as its header says."""
        return self.frames / self.rate

    def blocks(self) -> Iterator[F32]:
        """PCM at 16 kHz, float32 [N] each: joined, these are the samples of `load_audio` without its padding.

        Raises:
            AudioError: samples that are not finite, or far beyond full scale.
        """
        if self.rate == SAMPLE_RATE:
            yield from (block.astype(np.float32) for block in self._source_blocks())
            return
        # The same filter as soxr.resample: the samples are equal to the last bit.
        resampler = soxr.ResampleStream(self.rate, SAMPLE_RATE, 1, dtype="float64", quality="HQ")
        taken = given = 0
        for block in self._source_blocks():
            resampled = resampler.resample_chunk(block)
            taken, given = taken + len(block), given + len(resampled)
            yield resampled.astype(np.float32)
        missing = math.ceil(taken * SAMPLE_RATE / self.rate) - given
        rest = resampler.resample_chunk(np.zeros(0), last=True)[:missing]
        yield np.pad(rest, (0, missing - len(rest))).astype(np.float32)

    def _source_blocks(self) -> Iterator[F64]:
        """Channel 0, at the recording's own rate."""
        first = 0
        for block in self._array_blocks(self._source) if isinstance(self._source, np.ndarray) else self._file_blocks():
            refuse_unusable(block, first)
            first += len(block)
            yield block

    def _array_blocks(self, array: npt.NDArray[np.generic]) -> Iterator[F64]:
        for first in range(0, len(array), self.rate):
            yield to_full_scale(array[first : first + self.rate])

    def _file_blocks(self) -> Iterator[F64]:
        assert not isinstance(self._source, np.ndarray | Audio)
        with open_audio_file(self._source) as file:
            while len(frames := file.read(self.rate, dtype="float64", always_2d=True)):
                yield frames[:, 0]
