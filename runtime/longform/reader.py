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
    refuse_empty,
    refuse_unusable,
    to_full_scale,
)
from salmonrun.runtime.audio_file import DEFAULT_LIMITS, held, open_audio_file
from salmonrun.runtime.channel import Channel, check_channel, choose_channel, take_channel
from salmonrun.runtime.config import Limits
from salmonrun.runtime.errors import AudioError
from salmonrun.runtime.sound_file import F64


class PcmReader:
    """Where a recording comes from. Its header is read at once, its samples by `blocks`, of which no more than a
    second is held at a time.

    Args:
        source: as in `load_audio`; what is no file on a disk and no array is held whole.
        sample_rate: of an array, in Hz; files carry their own.
        channel: as in `load_audio`.
        strict: as in `load_audio`; where the header does not tell, a file is refused when its end is reached.
        limits: as in `load_audio`.

    Raises:
        AudioError: empty, not audio, no such channel, an array without a rate, or cut off and `strict`.
    """

    def __init__(
        self,
        source: AudioSource | Audio,
        sample_rate: int | None = None,
        channel: Channel = "first",
        strict: bool = False,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        if isinstance(source, Audio):
            if sample_rate is not None:
                raise AudioError(
                    f"sample_rate={sample_rate} was given with an Audio, which is at 16000 Hz; leave it out"
                )
            source, sample_rate = source.pcm, SAMPLE_RATE
        self._source = source if isinstance(source, np.ndarray) else held(source, limits)
        self._channel: int | None = 0
        self._strict = strict
        self._limits = limits
        self.notes: list[str] = []  # what is done to the recording; complete when its blocks were taken
        if isinstance(self._source, np.ndarray):
            self.rate, self.channels, self.frames = check_array(self._source, sample_rate, limits), 1, len(self._source)
            refuse_empty(self.frames)
            check_channel(channel, 1)
        else:
            with open_audio_file(self._source, sample_rate, limits) as file:
                self.rate, self.channels, self.frames = file.rate, file.channels, file.frames
                refuse_empty(self.frames)
                file.cut_off(self.frames, strict)
                self._channel, note = choose_channel(channel, file)
                self._note(note)
        if self.rate != SAMPLE_RATE:
            self._note(f"{self.rate} Hz resampled to {SAMPLE_RATE} Hz")

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
        """The chosen channel, at the recording's own rate."""
        source, first = self._source, 0
        for block in self._array_blocks(source) if isinstance(source, np.ndarray) else self._file_blocks(source):
            refuse_unusable(block, first)
            first += len(block)
            yield block

    def _array_blocks(self, array: npt.NDArray[np.generic]) -> Iterator[F64]:
        for first in range(0, len(array), self.rate):
            yield to_full_scale(array[first : first + self.rate])

    def _file_blocks(self, source: str | bytes) -> Iterator[F64]:
        with open_audio_file(source, limits=self._limits) as file:
            read = 0
            for block in file.blocks(self.rate):
                read += len(block)
                yield take_channel(block, self._channel)
            refuse_empty(read)
            self._note(file.cut_off(read, self._strict))

    def _note(self, note: str) -> None:
        if note and note not in self.notes:  # blocks may be taken more than once
            self.notes.append(note)
