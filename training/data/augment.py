"""Augmentation: noise and gain on the waveform, SpecAugment on the spectrograms. All randomness comes from `rng`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from salmonrun.runtime.audio import F32, SAMPLE_RATE, Audio, load_audio
from salmonrun.runtime.errors import ConfigError
from salmonrun.training.data.config import Augmentation
from salmonrun.training.model.features import HOPS_PER_S, Features

LONGEST_NOISE_S = 3600.0
NOISE_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def augment_audio(
    audio: Audio, settings: Augmentation, rng: np.random.Generator, noises: Sequence[Path] = (), max_s: float = 30.0
) -> Audio:
    """Pauses, noise from `noises`, Gaussian noise and gain, each with its probability. The samples stay float32.

    Pauses are shorter where the recording would become longer than `max_s`.
    """
    pcm: F32 = audio.pcm
    if settings.pause_p and rng.random() < settings.pause_p:
        room = max(0, round(max_s * SAMPLE_RATE) - len(pcm))
        front, behind = (rng.uniform(0, settings.pause_s, 2) * SAMPLE_RATE).astype(int)
        front = min(front, room)
        pcm = np.pad(pcm, (front, min(behind, room - front)))
    if noises and rng.random() < settings.noise_files_p:
        noise = _piece(load_audio(noises[int(rng.integers(len(noises)))], max_s=LONGEST_NOISE_S).pcm, len(pcm), rng)
        pcm = mix(pcm, noise, rng.uniform(settings.noise_files_low_db, settings.noise_files_high_db))
    if rng.random() < settings.noise_p:
        amplitude = np.float32(rng.uniform(settings.noise_low, settings.noise_high))
        pcm = pcm + amplitude * rng.standard_normal(len(pcm), dtype=np.float32)
    if rng.random() < settings.gain_p:
        pcm = pcm * np.float32(10 ** (rng.uniform(-settings.gain_db, settings.gain_db) / 20))
    return replace(audio, pcm=pcm)


def noise_files(settings: Augmentation) -> list[Path]:
    """The recordings of noise, folders searched.

    Raises:
        ConfigError: one does not exist or is none, or a folder holds none.
    """
    recordings: list[Path] = []
    for name in settings.noise_files:
        path = Path(name)
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix.lower() in NOISE_SUFFIXES)
        if not files:
            kinds = ", ".join(NOISE_SUFFIXES)
            raise ConfigError(f"augment.noise_files: {name} is neither a file nor a folder with {kinds}")
        recordings += files
    for path in recordings:  # now, and not after hours of training
        try:
            seconds = soundfile.info(path).duration
        except soundfile.SoundFileError as error:
            raise ConfigError(f"augment.noise_files: {path} cannot be read as audio ({error})") from error
        if not 0 < seconds <= LONGEST_NOISE_S:
            raise ConfigError(f"augment.noise_files: {path} has {seconds:.0f} s; at most {LONGEST_NOISE_S:.0f}")
    return recordings


def mix(pcm: F32, other: F32, snr_db: float) -> F32:
    """Add `other` [N] to `pcm` [N] at a signal-to-noise ratio in dB. Silence has no ratio: nothing is added to it."""
    power, other_power = (float(np.mean(np.square(x))) for x in (pcm, other))
    if not power or not other_power:
        return pcm
    return (pcm + other * np.sqrt(power / other_power / 10 ** (snr_db / 10))).astype(np.float32)


def _piece(noise: F32, length: int, rng: np.random.Generator) -> F32:
    """`length` samples from anywhere in the noise, which is repeated if it is shorter."""
    noise = np.tile(noise, -(-length // len(noise)))
    start = int(rng.integers(0, len(noise) - length + 1))
    return noise[start : start + length]


def mask_features(features: Features, settings: Augmentation, rng: np.random.Generator) -> Features:
    """SpecAugment (Park et al. 2019): bands of time and frequency become the spectrogram's mean, alike in both."""
    if rng.random() >= settings.mask_p:
        return features
    log_mel = features.log_mel.clone()
    fbank = None if features.fbank is None else features.fbank.clone()
    frames = log_mel.shape[1] if fbank is None else min(log_mel.shape[1], len(fbank))  # without the padding behind
    for _ in range(settings.masks):
        width = int(rng.integers(1, max(1, round(settings.mask_time_s * HOPS_PER_S)) + 1))
        start = int(rng.integers(0, max(1, frames - width + 1)))
        log_mel[:, start : start + width] = log_mel.mean()
        if fbank is not None:
            fbank[start : start + width] = fbank.mean()
        bins = int(rng.integers(1, settings.mask_bins + 1))
        low = rng.uniform(0, 1)
        _mask_bins(log_mel, 0, low, bins)
        if fbank is not None:
            _mask_bins(fbank, 1, low, bins)
    return Features(log_mel, fbank)


def _mask_bins(spectrogram: torch.Tensor, axis: int, low: float, bins: int) -> None:
    """Mask `bins` bins from the share `low` of the axis on, in place."""
    bins = min(bins, spectrogram.shape[axis])
    first = int(low * (spectrogram.shape[axis] - bins))
    spectrogram.narrow(axis, first, bins).fill_(float(spectrogram.mean()))
