"""Augmentation of waveforms as voices, rooms and lines differ, SpecAugment of spectrograms. All chance is `rng`'s."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from salmonrun.runtime.audio import F32, SAMPLE_RATE, Audio, load_audio
from salmonrun.runtime.errors import ConfigError
from salmonrun.training.data.acoustics import (
    change_speed,
    insert_silence,
    limit_band,
    mix,
    quiet_places,
    reverberate,
    room_response,
    shift_pitch,
    to_peak,
)
from salmonrun.training.data.config import Augmentation
from salmonrun.training.model.features import HOPS_PER_S, Features

LONGEST_NOISE_S = 3600.0
NOISE_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def augment_audio(
    audio: Audio,
    settings: Augmentation,
    rng: np.random.Generator,
    noises: Sequence[Path] = (),
    max_s: float = 30.0,
    task: str = "asr",
) -> Audio:
    """The speaker, the room, what sounds around and behind the voice, the line and the level, each by its probability.

    Pauses and sounds around the recording are shorter where it would become longer than `max_s`. The samples stay
    float32.

    Args:
        audio: a recording.
        settings: what is done, and how often.
        rng: what is drawn from.
        noises: recordings of noise, see noise_files.
        max_s: the longest recording that the model hears.
        task: of the entry; noise comes to `settings.noise_files_tasks` alone.
    """

    def drawn(probability: float) -> bool:
        return bool(probability) and bool(rng.random() < probability)

    pcm: F32 = audio.pcm
    most = max(len(pcm), round(max_s * SAMPLE_RATE))
    noises = noises if settings.noise_files_tasks is None or task in settings.noise_files_tasks else ()
    if drawn(settings.speed_p):
        slowest = len(pcm) / most
        pcm = change_speed(pcm, max(slowest, rng.uniform(1 - settings.speed, 1 + settings.speed)))[:most]
    if drawn(settings.pitch_p):
        pcm = shift_pitch(pcm, rng.uniform(-settings.pitch, settings.pitch))
    if drawn(settings.inner_pause_p):
        pcm = _pause_inside(pcm, settings, rng, most - len(pcm))
    if drawn(settings.reverb_p):
        pcm = reverberate(pcm, room_response(rng, rng.uniform(0.1, settings.reverb_s), rng.uniform(0, 15)))
    if noises and drawn(settings.around_p):
        pcm = _sounds_around(pcm, settings, rng, noises, most - len(pcm))
    if drawn(settings.pause_p):
        pcm = np.pad(pcm, _around(settings.pause_s, rng, most - len(pcm)))
    if noises and drawn(settings.noise_files_p):
        noise = _piece(_load(noises, rng), len(pcm), rng)
        pcm = mix(pcm, noise, rng.uniform(settings.noise_files_low_db, settings.noise_files_high_db))
    if drawn(settings.noise_p):
        amplitude = np.float32(rng.uniform(settings.noise_low, settings.noise_high))
        pcm = pcm + amplitude * rng.standard_normal(len(pcm), dtype=np.float32)
    if drawn(settings.band_p):
        pcm = limit_band(pcm, rng.uniform(150, 400), rng.uniform(2800, 3800))
    if drawn(settings.gain_p):
        pcm = pcm * np.float32(10 ** (rng.uniform(-settings.gain_db, settings.gain_db) / 20))
    if drawn(settings.level_p):
        pcm = to_peak(pcm, rng.uniform(settings.level_low_db, settings.level_high_db))
    return replace(audio, pcm=pcm)


def _pause_inside(pcm: F32, settings: Augmentation, rng: np.random.Generator, room: int) -> F32:
    """Silence at some of the quiet places."""
    places = quiet_places(pcm)
    if not places:
        return pcm
    count = int(rng.integers(1, min(len(places), settings.inner_pauses) + 1))
    chosen = np.sort(rng.choice(places, count, replace=False))
    lengths = (rng.uniform(0.1, max(0.1, settings.inner_pause_s), count) * SAMPLE_RATE).astype(np.int64)
    fitting = np.cumsum(lengths) <= room
    return insert_silence(pcm, chosen[fitting], lengths[fitting])


def _sounds_around(
    pcm: F32, settings: Augmentation, rng: np.random.Generator, noises: Sequence[Path], room: int
) -> F32:
    """A sound in front and another behind, as loud as the voice or softer."""
    parts = [pcm]
    for index, length in enumerate(_around(settings.around_s, rng, room)):
        if length:
            sound = to_peak(_piece(_load(noises, rng), length, rng), 0.0)
            sound = sound * np.abs(pcm).max(initial=0) * np.float32(rng.uniform(0.1, 1.0))
            parts.insert(0 if index == 0 else len(parts), sound)
    return np.concatenate(parts)


def _around(longest_s: float, rng: np.random.Generator, room: int) -> tuple[int, int]:
    """Samples in front and behind, together not more than `room`."""
    front, behind = (rng.uniform(0, longest_s, 2) * SAMPLE_RATE).astype(int)
    front = min(int(front), max(0, room))
    return front, min(int(behind), max(0, room - front))


def _load(noises: Sequence[Path], rng: np.random.Generator) -> F32:
    """One of the recordings of noise."""
    return load_audio(noises[int(rng.integers(len(noises)))], min_s=0.0, max_s=LONGEST_NOISE_S).pcm


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
