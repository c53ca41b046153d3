"""Spectrograms and encoder states as tensors, of one recording and in padded batches, and the front end."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from salmonrun.runtime.audio import SAMPLE_RATE, Audio
from salmonrun.runtime.config import AudioConfig, FbankConfig, WindowConfig
from salmonrun.runtime.features import HOP, MELS_PER_FRAME, fbank, log_mel, whisper_frames

HOPS_PER_S = SAMPLE_RATE // HOP  # both spectrograms have a frame every 10 ms
FRAMES_PER_S = HOPS_PER_S // MELS_PER_FRAME  # of Whisper's states


@dataclass(frozen=True)
class Features:
    """Spectrograms of one recording."""

    log_mel: Tensor  # [n_mels, 2 T]
    fbank: Tensor | None  # [F, bins]; None without an audio encoder


@dataclass(frozen=True)
class FrontEnd:
    """What turns a recording into spectrograms: settings and no weights, so that a loader's worker needs no model."""

    audio: AudioConfig
    window: WindowConfig  # of the Q-Former: a trimmed recording fills whole windows
    fbank: FbankConfig | None  # None without an audio encoder

    def features(self, audio: Audio) -> Features:
        """Spectrograms of one recording."""
        mel = log_mel(audio.pcm, self.audio, 2 * whisper_frames(len(audio.pcm), self.audio, self.window))
        bank = None if self.fbank is None else torch.from_numpy(fbank(audio.pcm, self.fbank))
        return Features(torch.from_numpy(mel), bank)


@dataclass(frozen=True)
class FeatureBatch:
    """Spectrograms of several recordings, zeros behind the shorter ones."""

    log_mel: Tensor  # [B, n_mels, 2 T]
    frames: Tensor  # [B] Whisper frames of each row
    fbank: Tensor | None  # [B, F, bins]
    fbank_frames: Tensor  # [B] filter-bank frames of each row

    def to(self, device: torch.device) -> "FeatureBatch":
        """The batch on a device."""
        fbank = None if self.fbank is None else self.fbank.to(device)
        return FeatureBatch(self.log_mel.to(device), self.frames.to(device), fbank, self.fbank_frames.to(device))


def collate(features: Sequence[Features]) -> FeatureBatch:
    """Pad and stack."""
    frames = torch.tensor([item.log_mel.shape[1] // 2 for item in features])
    longest = 2 * int(frames.max())
    log_mel = torch.stack([pad(item.log_mel, (0, longest - item.log_mel.shape[1])) for item in features])
    banks = [item.fbank for item in features if item.fbank is not None]
    lengths = torch.tensor([len(bank) for bank in banks])
    return FeatureBatch(
        log_mel, frames, torch.nn.utils.rnn.pad_sequence(banks, batch_first=True) if banks else None, lengths
    )


def count_tokens(frames: Tensor, config: FbankConfig) -> Tensor:
    """States that an audio encoder yields for recordings of `frames` [B] filter-bank frames: [B]."""
    return frames // config.patch_frames * config.patch_tokens


@dataclass(frozen=True)
class States:
    """What the encoders make of one recording."""

    speech: Tensor  # [T, d_model]
    audio: Tensor | None  # [A, dim]; None without an audio encoder


@dataclass(frozen=True)
class StateBatch:
    """Encoder states of several recordings; what is behind the shorter ones is not looked at."""

    speech: Tensor  # [B, T, d_model]
    frames: Tensor  # [B] Whisper frames of each row
    audio: Tensor | None  # [B, A, dim]
    audio_tokens: Tensor  # [B] states of the audio encoder of each row

    def to(self, device: torch.device) -> "StateBatch":
        """The batch on a device."""
        audio = None if self.audio is None else self.audio.to(device)
        return StateBatch(self.speech.to(device), self.frames.to(device), audio, self.audio_tokens.to(device))


def collate_states(states: Sequence[States]) -> StateBatch:
    """Pad and stack."""
    audio = [item.audio for item in states if item.audio is not None]
    return StateBatch(
        torch.nn.utils.rnn.pad_sequence([item.speech for item in states], batch_first=True),
        torch.tensor([len(item.speech) for item in states]),
        torch.nn.utils.rnn.pad_sequence(audio, batch_first=True) if audio else None,
        torch.tensor([len(item) for item in audio]),
    )
