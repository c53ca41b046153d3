"""Speech of any length to measure with."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from salmonrun.runtime.audio import F32, SAMPLE_RATE, AudioSource, load_audio

STORY = Path(__file__).with_name("speech.ogg")  # 30 s, read by flite's voice "slt"
ONSET_BELOW_PEAK = 30.0  # dB: quieter frames in front of the speech are not speech yet
FRAME = SAMPLE_RATE // 100


@dataclass(frozen=True)
class Recording:
    """Speech that goes on as long as it must: from its end, it begins anew."""

    pcm: F32  # [N] at 16 kHz

    @classmethod
    def load(cls, source: AudioSource | None) -> "Recording":
        """Read it; None: the story that comes with the package."""
        return cls(load_audio(STORY if source is None else source).pcm)

    def cut(self, seconds: float, start_s: float = 0.0) -> F32:
        """So many seconds of it."""
        first = round(start_s * SAMPLE_RATE)
        return np.take(self.pcm, np.arange(first, first + round(seconds * SAMPLE_RATE)), mode="wrap")


def wav(pcm: F32, subtype: Literal["PCM_16", "FLOAT"] = "PCM_16") -> bytes:
    """The bytes of a file, as an app would send them."""
    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format="WAV", subtype=subtype)
    return file.getvalue()


def onset_s(pcm: F32) -> float:
    """Where speech begins: the first 10 ms not more than 30 dB below the loudest ones."""
    frames = pcm[: len(pcm) // FRAME * FRAME].reshape(-1, FRAME)
    levels = np.sqrt(np.mean(np.square(frames, dtype=np.float64), axis=1))
    return float(np.argmax(levels >= levels.max() * math.pow(10, -ONSET_BELOW_PEAK / 20))) * FRAME / SAMPLE_RATE
