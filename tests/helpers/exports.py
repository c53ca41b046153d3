"""What tests of exports share: a tiny model, sounds, and how far an export found itself from PyTorch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from salmonrun.runtime import load_audio
from salmonrun.runtime.audio import Audio
from salmonrun.training.starting.presets import preset

TOLERANCE = 1e-4
TINY = preset("tiny")


def parity(bundle: Path) -> dict[str, Any]:
    parity: dict[str, Any] = json.loads((bundle / "parity.json").read_text())
    return parity


def noise(seconds: float, seed: int) -> Audio:
    """Noise whose loudness and colour glide."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal(round(seconds * 16000))
    time = np.arange(len(white)) / 16000
    pcm = 0.05 * (1.1 + np.sin(2 * np.pi * rng.uniform(0.5, 4) * time)) * white
    pcm += 0.2 * np.sin(2 * np.pi * (200 + 300 * np.sin(time)) * time)
    return load_audio(pcm.astype(np.float32), 16000, min_s=0.4)


def write_speech(folder: Path, count: int, **last: object) -> Path:
    """An annotation of so many recordings; `last` changes the last entry."""
    entries: list[dict[str, object]] = []
    for i in range(count):
        soundfile.write(folder / f"{i}.wav", noise(0.5 + i / 100, seed=i).pcm, 16000)
        entries.append({"path": f"{i}.wav", "text": "set a timer"})
    entries[-1] |= last
    annotation = folder / "speech.json"
    annotation.write_text(json.dumps({"annotation": entries}))
    return annotation
