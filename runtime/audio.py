"""Audio in: a file, its bytes or an array becomes float32 PCM at 16 kHz, and says what was done to it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from salmonrun.runtime.audio_file import DEFAULT_LIMITS, AudioFile, FileSource, check_rate, open_audio_file
from salmonrun.runtime.channel import Channel, check_channel, choose_channel, take_channel
from salmonrun.runtime.config import Limits
from salmonrun.runtime.errors import AudioError, AudioTooLongError
from salmonrun.runtime.sound_file import F64

SAMPLE_RATE = 16000
F32 = npt.NDArray[np.float32]
AudioSource = FileSource | npt.NDArray[Any]

# Float PCM lies within about 1.0. A peak like this means integers stored as floats.
_LARGEST_FLOAT_PEAK = 256.0
_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}


@dataclass(frozen=True)
class Audio:
    """Mono PCM at 16 kHz, and where it came from."""

    pcm: F32  # [N]
    source_rate: int  # Hz, before resampling
    source_channels: int
    source_s: float  # seconds, before padding
    notes: tuple[str, ...] = ()  # what was done: channels dropped, resampled, padded, cut

    @property
    def duration_s(self) -> float:
        """Seconds of `pcm`, padding included."""
        return len(self.pcm) / SAMPLE_RATE

    @property
    def peak_dbfs(self) -> float:
        """Peak level in dB relative to full scale; -inf for digital silence."""
        peak = _peak(self.pcm)
        return 20 * math.log10(peak) if peak > 0 else -math.inf

    def first(self, seconds: float) -> "Audio":
        """The first `seconds`; the cut is noted.

        Raises:
            AudioError: that would be nothing.
        """
        count = round(seconds * SAMPLE_RATE)
        if count < 1:
            raise AudioError(f"first({seconds:g}) seconds would leave nothing; ask for more than 0 seconds")
        if count >= len(self.pcm):
            return self
        note = f"cut from {self.duration_s:.2f} s to {seconds:.2f} s on request"
        return replace(self, pcm=self.pcm[:count], notes=(*self.notes, note))


def load_audio(
    source: AudioSource | Audio,
    sample_rate: int | None = None,
    *,
    min_s: float = 1.0,
    max_s: float | None = None,
    channel: Channel = "first",
    strict: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Audio:
    """Read audio and bring it to what the model was trained on.

    The policy is the published one: channel 0 of several (but see `channel`), zeros appended up to `min_s`, then
    resampling to 16 kHz.

    Args:
        source: path, bytes of a file (wav, flac, ogg, mp3: whatever libsndfile reads), an open binary file, or a 1-D
            array of float (full scale 1.0), int16 or int32 PCM.
        sample_rate: of an array, in Hz; files carry their own.
        min_s: shorter audio is padded with zeros to this many seconds.
        max_s: longer audio is refused; None for any length.
        channel: "first" is channel 0, as checkpoints were trained, or the loudest if channel 0 is silent and that is
            not; "mix" is the mean of all; a number is that channel, silent or not. Notes say what was done.
        strict: refuse a file that ends before its header says; else a note says so.
        limits: what a file may claim, how much may be held, and whether it is decoded in a process of its own.

    Raises:
        AudioError: empty, not finite, not audio, no such channel, an array without a rate, or cut off and `strict`.
        AudioTooLongError: longer than `max_s`.
    """
    if isinstance(source, Audio):
        if sample_rate is not None:
            raise AudioError(f"sample_rate={sample_rate} was given with an Audio, which is at 16000 Hz; leave it out")
        check_channel(channel, 1)
        _refuse_longer(source.duration_s, max_s)
        return _pad(source, min_s)
    if isinstance(source, np.ndarray):
        read = _from_array(source, sample_rate, channel, limits)
    else:
        read = _from_file(source, sample_rate, channel, max_s, strict, limits)
    return _prepare(read, min_s, max_s)


@dataclass(frozen=True)
class _Read:
    """Samples as they were recorded."""

    samples: npt.NDArray[np.float64]  # [N], of one channel
    rate: int
    channels: int
    notes: tuple[str, ...] = ()


def _prepare(read: _Read, min_s: float, max_s: float | None) -> Audio:
    samples, rate, notes = read.samples, read.rate, list(read.notes)
    refuse_empty(len(samples))
    refuse_unusable(samples)
    source_s = len(samples) / rate
    _refuse_longer(source_s, max_s)
    shortest = round(min_s * rate)
    if len(samples) < shortest:
        samples = np.pad(samples, (0, shortest - len(samples)))
        notes.append(f"{source_s:.3f} s padded with zeros to {min_s:g} s")
    if rate != SAMPLE_RATE:
        samples = _resample(samples, rate)
        notes.append(f"{rate} Hz resampled to {SAMPLE_RATE} Hz")
    return Audio(samples.astype(np.float32), rate, read.channels, source_s, tuple(notes))


def _pad(audio: Audio, min_s: float) -> Audio:
    missing = round(min_s * SAMPLE_RATE) - len(audio.pcm)
    if missing <= 0:
        return audio
    note = f"{audio.duration_s:.3f} s padded with zeros to {min_s:g} s"
    return replace(audio, pcm=np.pad(audio.pcm, (0, missing)), notes=(*audio.notes, note))


def _resample(samples: npt.NDArray[np.float64], rate: int) -> npt.NDArray[np.float64]:
    """Resample as librosa's default does: soxr HQ, length ceil(n * ratio)."""
    length = math.ceil(len(samples) * SAMPLE_RATE / rate)
    resampled: npt.NDArray[np.float64] = soxr.resample(samples, rate, SAMPLE_RATE, "HQ")[:length]
    return np.pad(resampled, (0, length - len(resampled)))


def _from_array(array: npt.NDArray[Any], rate: int | None, channel: Channel, limits: Limits) -> _Read:
    rate = check_array(array, rate, limits)
    check_channel(channel, 1)
    return _Read(to_full_scale(array), rate, 1)


def _from_file(
    source: FileSource, rate: int | None, channel: Channel, max_s: float | None, strict: bool, limits: Limits
) -> _Read:
    with open_audio_file(source, rate, limits) as file:
        file.cut_off(file.frames, strict)  # before it is read, where the header tells
        _refuse_longer(file.frames / file.rate, max_s)
        refuse_empty(file.frames)
        _refuse_larger(file.frames, limits)
        chosen, note = choose_channel(channel, file)
        samples = _samples(file, chosen)
        notes = (note, file.cut_off(len(samples), strict))
        return _Read(samples, file.rate, file.channels, tuple(note for note in notes if note))


def _samples(file: AudioFile, channel: int | None) -> F64:
    """One channel [N], or the mean of all."""
    try:
        parts = [take_channel(block, channel) for block in file.blocks()]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0), *parts])
    except MemoryError as error:
        raise AudioError(
            f"{file.frames} samples do not fit into memory; transcribe reads recordings of any length piece by piece"
        ) from error


def check_array(array: npt.NDArray[Any], rate: int | None, limits: Limits = DEFAULT_LIMITS) -> int:
    """The rate of an array that can be PCM.

    Raises:
        AudioError: no or an absurd rate, a wrong shape or dtype.
    """
    if rate is None:
        raise AudioError("an array needs sample_rate=, e.g. sample_rate=16000; without it the pitch would be a guess")
    check_rate(rate, limits=limits)
    if array.ndim != 1:
        raise AudioError(
            f"the array has shape {array.shape}; expected [N], one channel: of [N, C] pass array[:, 0] or "
            "array.mean(axis=1), of [C, N] array[0] or array.mean(axis=0)"
        )
    if array.dtype not in (np.int16, np.int32, np.float32, np.float64):
        raise AudioError(f"the array has dtype {array.dtype}; expected float32 (full scale 1.0), int16 or int32")
    return rate


def to_full_scale(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Float, int16 or int32 PCM [N] as float64, full scale 1.0."""
    samples = array.astype(np.float64)
    if array.dtype in _FULL_SCALE:
        samples /= _FULL_SCALE[array.dtype]
    return samples


def refuse_empty(count: int) -> None:
    """Refuse a recording of no samples."""
    if not count:
        raise AudioError("the audio is empty (0 samples); expected at least one")


def refuse_unusable(samples: npt.NDArray[np.float64], first: int = 0) -> None:
    """Refuse samples that are not finite, or integers stored as floats; `first` is the number of the first one."""
    peak = _peak(samples)
    if not math.isfinite(peak):
        where = int(np.argmin(np.isfinite(samples)))
        raise AudioError(
            f"sample {first + where} is {samples[where]}; expected finite values: clean the recording first"
        )
    if peak > _LARGEST_FLOAT_PEAK:
        raise AudioError(
            f"the largest sample is {peak:.0f}; float PCM lies within 1.0: divide 16-bit values by 32768 or pass int16"
        )


def _peak(samples: npt.NDArray[np.floating[Any]]) -> float:
    """The largest magnitude, NaN if there is one; two passes cost less than one and an array of magnitudes."""
    return max(float(samples.max(initial=0.0)), -float(samples.min(initial=0.0)))


def _refuse_larger(frames: int, limits: Limits) -> None:
    mib = frames * 8 / 2**20
    if mib > limits.max_samples_mib:
        raise AudioTooLongError(
            f"the header says {frames} samples, which take {mib:.0f} MiB; the limit is {limits.max_samples_mib}: let "
            "transcribe read it piece by piece, or raise Limits(max_samples_mib=...)"
        )


def _refuse_longer(seconds: float, max_s: float | None) -> None:
    # A millisecond of tolerance: resampling may add a sample to a recording that fills the window.
    if max_s is not None and seconds > max_s + 1e-3:
        raise AudioTooLongError(
            f"the audio is {seconds:.2f} s long; this model hears {max_s:g} s at once: "
            f"pass load_audio(source).first({max_s:g}) to use its beginning, or cut it into pieces"
        )
