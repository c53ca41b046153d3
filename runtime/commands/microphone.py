"""PCM of a microphone, through sounddevice (https://python-sounddevice.readthedocs.io) and PortAudio."""

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np

from salmonrun.runtime.audio_file import check_rate
from salmonrun.runtime.commands.source import Pcm, Source
from salmonrun.runtime.errors import AudioError, MissingExtraError

_BLOCK_S = 0.032  # of audio that are handed over at once: a hop of the voice detector


def open_microphone(rate: int) -> Source:
    """The system's default microphone, at `rate`; it records from the first piece on, until the last is let go of.

    Raises:
        AudioError: there is no microphone, or it cannot record so; an absurd rate.
        MissingExtraError: sounddevice or PortAudio is not installed.
    """
    check_rate(rate, "--rate")
    sounddevice = _load_sounddevice()
    try:
        sounddevice.check_input_settings(channels=1, dtype="int16", samplerate=rate)
    except (sounddevice.PortAudioError, ValueError) as error:  # ValueError: no default device
        raise AudioError(
            f"no microphone records at {rate} Hz ({error}); connect one, choose another --rate, or see what there is "
            "with python -m sounddevice"
        ) from error
    notes: list[str] = []
    return Source(rate, _record(sounddevice, rate, notes), notes)


def _load_sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise MissingExtraError(
            "--microphone needs sounddevice, which is not installed: pip install 'salmonrun[microphone]'"
        ) from error
    except OSError as error:  # it is there, and its library is not
        raise MissingExtraError(
            f"--microphone needs PortAudio ({error}): apt-get install libportaudio2, or your system's package of it"
        ) from error
    return sounddevice


def _record(sounddevice: Any, rate: int, notes: list[str]) -> Iterator[Pcm]:
    """All that was recorded since the piece before: what is slow loses nothing."""
    recorded: SimpleQueue[bytes] = SimpleQueue()
    overflowed = "the microphone lost samples: this machine was too busy to take them"

    def take(data: Any, _frames: int, _time: Any, status: Any) -> None:  # in a thread of PortAudio
        if status.input_overflow and overflowed not in notes:
            notes.append(overflowed)
        recorded.put(bytes(data))

    block = round(_BLOCK_S * rate)
    with sounddevice.RawInputStream(rate, block, channels=1, dtype="int16", callback=take):
        while True:
            data = [recorded.get()]
            while not recorded.empty():
                data.append(recorded.get())
            yield np.frombuffer(b"".join(data), np.int16)
