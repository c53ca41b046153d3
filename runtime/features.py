"""Features without torch: Whisper's log-mel spectrogram and the Kaldi filter bank of the audio encoder.

Both are computed in float64 and returned in float32: in float32 arithmetic, quiet bands next to loud ones are off by up
to 4e-3.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.config import AudioConfig, FbankConfig, WindowConfig

F64 = npt.NDArray[np.float64]

# Whisper (openai/whisper, audio.py): 25 ms periodic Hann windows every 10 ms, 50 encoder frames a second.
N_FFT = 400
HOP = 160
MELS_PER_FRAME = 2  # the encoder's second convolution has stride 2

# Kaldi's filter bank: 25 ms windows every 10 ms, bins from 20 Hz to Nyquist.
FBANK_LENGTH = 400
FBANK_FFT = 512
FBANK_LOW_HZ = 20.0
FBANK_FLOOR = float(np.finfo(np.float32).eps)
PREEMPHASIS = 0.97

_BLOCK = 64  # frames that are transformed at once: they and what is made of them stay in the processor's cache


def whisper_frames(samples: int, config: AudioConfig, window: WindowConfig) -> int:
    """Encoder frames (50 a second) the model hears for this many samples."""
    longest = round(config.max_s * SAMPLE_RATE) // (HOP * MELS_PER_FRAME)
    if config.window == "padded":
        return longest
    needed = -(-samples // (HOP * MELS_PER_FRAME))
    windows = max(1, -(-(needed - window.frames) // window.stride) + 1)
    return min(window.frames + (windows - 1) * window.stride, longest)


def audio_tokens(samples: int, config: FbankConfig) -> int:
    """States the audio encoder yields for this many samples."""
    frames = 1 + (samples - FBANK_LENGTH) // HOP
    patches = -(-frames // config.patch_frames) if config.last_patch == "padded" else frames // config.patch_frames
    return config.patch_tokens * patches


def log_mel(pcm: F32, config: AudioConfig, frames: int, first: int = 0, end: int | None = None) -> F32:
    """Whisper's log-mel spectrogram of `pcm` [N], padded with zeros (or cut) to `frames` hops: [n_mels, frames].

    With `first` and `end` only these hops are computed: [n_mels, end - first].
    """
    end = frames if end is None else end
    # Hops after the audio's end are exact zeros: their power is not computed but known.
    active = max(0, min(end, (len(pcm) + N_FFT // 2) // HOP + 1) - first)
    mel = np.full((config.n_mels, end - first), -10.0)  # log10 of the floor 1e-10
    if active:
        half = N_FFT // 2
        samples = _reflected(pcm, first * HOP - half, (first + active - 1) * HOP + half, frames * HOP)
        windows = np.lib.stride_tricks.sliding_window_view(samples, N_FFT)[::HOP]
        power = _power(windows, N_FFT, lambda block: block * _hann(N_FFT))
        mel[:, :active] = np.log10(np.maximum(power @ _slaney_filters(config.n_mels), 1e-10)).T
    maximum = mel.max() if config.log_mel_max is None else config.log_mel_max
    return np.asarray((np.maximum(mel, maximum - 8.0) + 4.0) / 4.0, np.float32)


def _reflected(pcm: F32, first: int, end: int, length: int) -> F64:
    """Samples `first` to `end` of `pcm`, which is padded with zeros (or cut) to `length` and mirrored at both ends."""
    inside = np.zeros(max(0, min(end, length) - max(first, 0)))
    heard = pcm[max(first, 0) : min(end, length)]
    inside[: len(heard)] = heard
    return np.pad(inside, (max(0, -first), max(0, end - length)), mode="reflect")


def fbank(pcm: F32, config: FbankConfig) -> F32:
    """The normalised Kaldi filter bank of `pcm` [N >= 400]: [F, bins].

    F is 1 + (N - 400) // 160, rounded up to whole patches if the last one is padded.
    """
    samples = pcm.astype(np.float64)
    if config.subtract_mean:
        samples -= samples.mean()
    frames = np.lib.stride_tricks.sliding_window_view(samples * config.waveform_scale, FBANK_LENGTH)[::HOP]
    power = _power(frames, FBANK_FFT, lambda block: _emphasized(block) * _kaldi_window(config.window))
    energies = power[:, :-1] @ _kaldi_filters(config.bins)  # Kaldi leaves the Nyquist bin out
    features = np.log(np.maximum(energies, FBANK_FLOOR))
    if config.last_patch == "padded":
        features = np.pad(features, ((0, -len(features) % config.patch_frames), (0, 0)))
    return np.asarray((features - config.mean) / config.scale, np.float32)


def _power(frames: F64, size: int, windowed: Callable[[F64], F64]) -> F64:
    """|FFT|^2 of frames [N, L], windowed and padded with zeros to `size`: [N, size // 2 + 1]."""
    power = np.empty((len(frames), size // 2 + 1))
    for first in range(0, len(frames), _BLOCK):
        block = slice(first, first + _BLOCK)
        power[block] = np.abs(np.fft.rfft(windowed(frames[block]), n=size)) ** 2
    return power


def _emphasized(frames: F64) -> F64:
    """Kaldi's frames [N, FBANK_LENGTH] without their means and with high frequencies raised."""
    frames = frames - frames.mean(axis=1, keepdims=True)
    previous = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    return frames - PREEMPHASIS * previous


@cache
def _hann(length: int) -> F64:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


@cache
def _kaldi_window(name: Literal["povey", "hanning"]) -> F64:
    """Kaldi's windows: a symmetric Hann, for "povey", the default, raised to 0.85."""
    hanning = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FBANK_LENGTH) / (FBANK_LENGTH - 1))
    return np.asarray(hanning**0.85 if name == "povey" else hanning)


@cache
def _slaney_filters(n_mels: int) -> F64:
    """Slaney-scale, area-normalised triangles from 0 Hz to 8 kHz, as librosa and Whisper: [N_FFT // 2 + 1, n_mels]."""
    edges = _slaney_mel_to_hz(np.linspace(0.0, _slaney_hz_to_mel(SAMPLE_RATE / 2), n_mels + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    triangles = _triangles(bins, edges)
    return triangles * (2.0 / (edges[2:] - edges[:-2]))


@cache
def _kaldi_filters(count: int) -> F64:
    """Triangles on Kaldi's mel scale, 1127 ln(1 + f / 700): [FBANK_FFT // 2, count]."""
    low, high = (1127.0 * np.log(1.0 + hz / 700.0) for hz in (FBANK_LOW_HZ, SAMPLE_RATE / 2))
    bins = 1127.0 * np.log(1.0 + np.arange(FBANK_FFT // 2) * (SAMPLE_RATE / FBANK_FFT) / 700.0)
    return _triangles(bins, np.linspace(low, high, count + 2))


def _triangles(bins: F64, edges: F64) -> F64:
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


# Slaney's Auditory Toolbox scale: linear (3 mel per 200 Hz) below 1 kHz = 15 mel, logarithmic above.
_LOG_STEP = np.log(6.4) / 27.0


def _slaney_hz_to_mel(hz: float) -> float:
    return 3.0 * hz / 200.0 if hz < 1000.0 else float(15.0 + np.log(hz / 1000.0) / _LOG_STEP)


def _slaney_mel_to_hz(mel: F64) -> F64:
    return np.where(mel < 15.0, 200.0 * mel / 3.0, 1000.0 * np.exp(_LOG_STEP * (mel - 15.0)))
