"""Audio in: a file, its bytes or an array becomes float32 PCM at 16 kHz, and says what was done to it."""

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from salmonrun.runtime.errors import AudioError, AudioNotFoundError, AudioTooLongError

SAMPLE_RATE = 16000
F32 = npt.NDArray[np.float32]
AudioSource = str | os.PathLike[str] | bytes | npt.NDArray[Any]

# Float PCM lies within about 1.0. A peak like this means integers stored as floats.
_LARGEST_FLOAT_PEAK = 256.0


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
        peak = float(np.max(np.abs(self.pcm)))
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
    source: AudioSource | Audio, sample_rate: int | None = None, *, min_s: float = 1.0, max_s: float | None = None
) -> Audio:
    """Read audio and bring it to what the model was trained on.

    The policy is the published one: channel 0 of several, zeros appended up to `min_s`, then resampling to 16 kHz.

    Args:
        source: path, bytes of a file (wav, flac, ogg, mp3: whatever libsndfile reads), or a 1-D array of float
            (full scale 1.0) or int16 PCM.
        sample_rate: of an array, in Hz; files carry their own.
        min_s: shorter audio is padded with zeros to this many seconds.
        max_s: longer audio is refused; None for any length.

    Raises:
        AudioError: empty, not finite, not audio, or an array without a rate.
        AudioTooLongError: longer than `max_s`.
    """
    if isinstance(source, Audio):
        if sample_rate is not None:
            raise AudioError(f"sample_rate={sample_rate} was given with an Audio, which is at 16000 Hz; leave it out")
        _refuse_longer(source.duration_s, max_s)
        return _pad(source, min_s)
    if isinstance(source, np.ndarray):
        samples, rate, channels = _from_array(source, sample_rate)
    else:
        samples, rate, channels = _from_file(source, sample_rate, max_s)
    return _prepare(samples, rate, channels, min_s, max_s)


def _prepare(samples: npt.NDArray[np.float64], rate: int, channels: int, min_s: float, max_s: float | None) -> Audio:
    refuse_empty(len(samples))
    refuse_unusable(samples)
    source_s = len(samples) / rate
    _refuse_longer(source_s, max_s)
    notes = [f"channel 0 of {channels} is used"] if channels > 1 else []
    shortest = round(min_s * rate)
    if len(samples) < shortest:
        samples = np.pad(samples, (0, shortest - len(samples)))
        notes.append(f"{source_s:.3f} s padded with zeros to {min_s:g} s")
    if rate != SAMPLE_RATE:
        samples = _resample(samples, rate)
        notes.append(f"{rate} Hz resampled to {SAMPLE_RATE} Hz")
    return Audio(samples.astype(np.float32), rate, channels, source_s, tuple(notes))


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


def _from_array(array: npt.NDArray[Any], rate: int | None) -> tuple[npt.NDArray[np.float64], int, int]:
    rate = check_array(array, rate)
    return to_full_scale(array), rate, 1


def check_array(array: npt.NDArray[Any], rate: int | None) -> int:
    """The rate of an array that can be PCM.

    Raises:
        AudioError: no or an absurd rate, a wrong shape or dtype.
    """
    if rate is None:
        raise AudioError("an array needs sample_rate=, e.g. sample_rate=16000; without it the pitch would be a guess")
    if not 1000 <= rate <= 768_000:
        raise AudioError(f"sample_rate is {rate}; expected 1000 to 768000 Hz")
    if array.ndim != 1:
        raise AudioError(f"the array has shape {array.shape}; expected [N], one channel: pass array[:, 0] or array[0]")
    if array.dtype not in (np.int16, np.float32, np.float64):
        raise AudioError(f"the array has dtype {array.dtype}; expected float32 (full scale 1.0) or int16")
    return rate


def to_full_scale(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Float or int16 PCM [N] as float64, full scale 1.0."""
    return array.astype(np.float64) / (32768 if array.dtype == np.int16 else 1)


def _from_file(
    source: str | os.PathLike[str] | bytes, rate: int | None, max_s: float | None
) -> tuple[npt.NDArray[np.float64], int, int]:
    with open_audio_file(source, rate) as file:
        _refuse_longer(file.frames / file.samplerate, max_s)
        frames = file.read(dtype="float64", always_2d=True)
        return frames[:, 0] if file.channels else frames.ravel(), file.samplerate, file.channels


@contextmanager
def open_audio_file(source: str | os.PathLike[str] | bytes, rate: int | None = None) -> Iterator[soundfile.SoundFile]:
    """Open a path or the bytes of a file; what goes wrong while it is read becomes an AudioError, too.

    Raises:
        AudioError: not audio, or a `rate` is given, which files carry themselves.
        AudioNotFoundError: there is no such file.
    """
    if rate is not None:
        raise AudioError(f"sample_rate={rate} was given with a file, which carries its own; leave it out")
    if not isinstance(source, (str, os.PathLike, bytes)):
        raise AudioError(f"audio is a {type(source).__name__}; expected a path, the bytes of a file, or a numpy array")
    name = "the bytes given" if isinstance(source, bytes) else f"{os.fspath(source)!r}"
    if not isinstance(source, bytes) and not os.path.isfile(source):
        problem = "is a folder" if os.path.isdir(source) else "does not exist"
        raise AudioNotFoundError(f"audio file {name} {problem}")
    if isinstance(source, bytes) and not source:
        raise AudioError("the bytes given are empty; expected the content of an audio file")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            yield file
    except (soundfile.SoundFileError, UnicodeEncodeError) as error:
        raise AudioError(
            f"{name} is not audio that libsndfile can read ({error}); "
            "expected wav, flac, ogg or mp3: convert it, e.g. with ffmpeg -i INPUT output.wav"
        ) from error


def refuse_empty(count: int) -> None:
    """Refuse a recording of no samples."""
    if not count:
        raise AudioError("the audio is empty (0 samples); expected at least one")


def refuse_unusable(samples: npt.NDArray[np.float64], first: int = 0) -> None:
    """Refuse samples that are not finite, or integers stored as floats; `first` is the number of the first one."""
    if not np.isfinite(samples).all():
        where = int(np.argmin(np.isfinite(samples)))
        raise AudioError(
            f"sample {first + where} is {samples[where]}; expected finite values: clean the recording first"
        )
    peak = float(np.max(np.abs(samples), initial=0.0))
    if peak > _LARGEST_FLOAT_PEAK:
        raise AudioError(
            f"the largest sample is {peak:.0f}; float PCM lies within 1.0: divide 16-bit values by 32768 or pass int16"
        )


def _refuse_longer(seconds: float, max_s: float | None) -> None:
    # A millisecond of tolerance: resampling may add a sample to a recording that fills the window.
    if max_s is not None and seconds > max_s + 1e-3:
        raise AudioTooLongError(
            f"the audio is {seconds:.2f} s long; this model hears {max_s:g} s at once: "
            f"pass load_audio(source).first({max_s:g}) to use its beginning, or cut it into pieces"
        )
