"""Augmentation: noise and gain on the waveform, SpecAugment on the spectrograms. All randomness comes from `rng`."""

from dataclasses import replace

import numpy as np
import torch

from runtime.audio import F32, Audio
from training.features import Features
from training.recipe import Augmentation

HOPS_PER_S = 100  # both spectrograms have a frame every 10 ms


def augment_audio(audio: Audio, settings: Augmentation, rng: np.random.Generator) -> Audio:
    """Gaussian noise and gain, each with its probability. The samples stay float32."""
    pcm: F32 = audio.pcm
    if rng.random() < settings.noise_p:
        amplitude = np.float32(rng.uniform(settings.noise_low, settings.noise_high))
        pcm = pcm + amplitude * rng.standard_normal(len(pcm), dtype=np.float32)
    if rng.random() < settings.gain_p:
        pcm = pcm * np.float32(10 ** (rng.uniform(-settings.gain_db, settings.gain_db) / 20))
    return replace(audio, pcm=pcm)


def mask_features(features: Features, settings: Augmentation, rng: np.random.Generator) -> Features:
    """SpecAugment (Park et al. 2019): bands of time and frequency become the spectrogram's mean, alike in both."""
    if rng.random() >= settings.mask_p:
        return features
    log_mel = features.log_mel.clone()
    fbank = None if features.fbank is None else features.fbank.clone()
    for _ in range(settings.masks):
        width = int(rng.integers(1, max(2, round(settings.mask_time_s * HOPS_PER_S))))
        start = int(rng.integers(0, max(1, log_mel.shape[1] - width)))
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
    first = int(low * (spectrogram.shape[axis] - bins))
    spectrogram.narrow(axis, first, bins).fill_(float(spectrogram.mean()))
