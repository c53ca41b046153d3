"""PCM as it is pushed: any length, rate and type becomes float32 hops at 16 kHz."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from salmonrun.runtime.audio import F32, SAMPLE_RATE, check_array, refuse_unusable, to_full_scale
from salmonrun.runtime.audio_file import check_rate
from salmonrun.runtime.errors import AudioError
from salmonrun.runtime.vad import VAD_HOP


class PcmInput:
    """Collects pieces and hands out hops, which do not depend on how the PCM was cut.

    Args:
        sample_rate: of the pieces, in Hz.

    Raises:
        AudioError: no usable rate.
    """

    def __init__(self, sample_rate: int) -> None:
        check_rate(sample_rate)
        self._rate = sample_rate
        self._count = 0  # samples taken, at that rate
        self._resampler = (
            None if sample_rate == SAMPLE_RATE else soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, np.float64)
        )
        self._rest = np.zeros(0, np.float32)

    def add(self, pcm: npt.NDArray[Any]) -> int:
        """Take a piece [N] of float (full scale 1.0), int16 or int32 samples; how many at 16 kHz it has brought.

        Raises:
            AudioError: it is not such an array, or not finite.
        """
        if not isinstance(pcm, np.ndarray):
            raise AudioError(f"push was given a {type(pcm).__name__}; expected a numpy array [N], one channel")
        check_array(pcm, self._rate)
        samples = to_full_scale(pcm)
        if len(samples):
            refuse_unusable(samples, self._count)
        self._count += len(samples)
        return self._take(samples, last=False)

    def finish(self) -> int:
        """Nothing follows: how many samples the resampler still had."""
        count = self._take(np.zeros(0), last=True)  # a resampler takes nothing more then
        self._resampler = None
        return count

    def hops(self) -> Iterator[F32]:
        """Complete hops [VAD_HOP]."""
        whole = len(self._rest) // VAD_HOP * VAD_HOP
        hops, self._rest = self._rest[:whole].reshape(-1, VAD_HOP), self._rest[whole:]
        yield from hops

    @property
    def waiting(self) -> F32:
        """What does not fill a hop yet."""
        return self._rest

    def rest(self) -> F32:
        """What does not fill a hop; it is gone then."""
        rest, self._rest = self._rest, np.zeros(0, np.float32)
        return rest

    def _take(self, samples: npt.NDArray[np.float64], last: bool) -> int:
        if self._resampler:
            samples = self._resampler.resample_chunk(samples, last=last)
        self._rest = np.concatenate([self._rest, samples.astype(np.float32)])
        return len(samples)
