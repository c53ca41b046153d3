"""Which channel of a recording is heard."""

from typing import Literal

import numpy as np

from salmonrun.runtime.audio_file import AudioFile
from salmonrun.runtime.config import SILENCE_DBFS
from salmonrun.runtime.errors import AudioError, ConfigError
from salmonrun.runtime.sound_file import F64

Channel = Literal["first", "mix"] | int
"""What is heard of several channels.

"first" is channel 0, as in the published code: checkpoints were trained so, and what the golden cases of their bundles
hold stays true. Only where channel 0 is silent and another is not, that would answer about nothing: then the loudest
is heard instead, and a note says so. "mix" is their mean; a number is that channel, silent or not.
"""


def choose_channel(channel: Channel, file: AudioFile) -> tuple[int | None, str]:
    """The channel to take, None for the mean of all, and a note; what stands after a silent second is read for that.

    Raises:
        AudioError: the file has no such channel.
        ConfigError: not a channel.
    """
    check_channel(channel, file.channels)
    if file.channels == 1:
        return 0, ""
    if channel == "mix":
        return None, f"{file.channels} channels are mixed"
    if channel != "first":
        return int(channel), f"channel {channel} of {file.channels} is used"
    if chosen := _loudest_if_first_is_silent(file):
        return chosen, f"channel {chosen} of {file.channels} is used: channel 0 is silent"
    return 0, f"channel 0 of {file.channels} is used"


def check_channel(channel: Channel, channels: int) -> None:
    """Refuse a channel that is not there.

    Raises:
        AudioError: there are not so many channels.
        ConfigError: not a channel.
    """
    if channel in ("first", "mix"):
        return
    if isinstance(channel, bool) or not isinstance(channel, int):
        raise ConfigError(f"channel is {channel!r}; expected 'first', 'mix' or a number from 0")
    if not 0 <= channel < channels:
        there = "only channel 0" if channels == 1 else f"channels 0 to {channels - 1}"
        raise AudioError(f"channel is {channel}; the audio has {there}: choose one of these, 'first' or 'mix'")


def take_channel(block: F64, channel: int | None) -> F64:
    """One channel, or the mean of all, of samples [N, C]: [N]."""
    return block.mean(axis=1) if channel is None else block[:, channel]


def _loudest_if_first_is_silent(file: AudioFile) -> int:
    """0, or the loudest channel; stops reading at the first sample of channel 0 that is not silence."""
    limit = 10 ** (SILENCE_DBFS / 20)
    peaks = np.zeros(file.channels)
    for block in file.blocks(file.rate):
        peaks = np.fmax(peaks, np.abs(block).max(axis=0))
        if not peaks[0] < limit:
            return 0
    return int(peaks.argmax()) if peaks.max() >= limit else 0
