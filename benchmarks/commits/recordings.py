"""What both commits hear: files made once from recordings of the repository, at 16 kHz."""

from pathlib import Path

import numpy as np

from salmonrun.runtime.audio import F32, SAMPLE_RATE, load_audio
from salmonrun.runtime.latency.recording import STORY, Recording, wav

SPOKEN = Path(__file__).parents[2] / "demo" / "recordings"


def sentences() -> list[Path]:
    """The demo's recordings: speech, sounds, and both."""
    return sorted(SPOKEN.glob("*.flac"))


def silence(folder: Path) -> Path:
    """Two seconds of nothing."""
    return _write(folder / "silence.wav", np.zeros(2 * SAMPLE_RATE, np.float32))


def story(folder: Path, seconds: float) -> Path:
    """A story read aloud, from its beginning, and from there again where it ends."""
    return _write(folder / f"story-{seconds:g}.wav", Recording.load(None).cut(seconds))


def joined(folder: Path, count: int, told: bool) -> Path:
    """So many of the demo's recordings with pauses of growing length between them; the story between two of them."""
    parts: list[F32] = []
    for number, path in enumerate(sentences()[:count]):
        pause_s = 0.3 + 0.4 * (number % 4)  # some end an utterance or a window, some do not
        parts += [load_audio(path).pcm, np.zeros(round(pause_s * SAMPLE_RATE), np.float32)]
        if told and number == count // 2:
            parts.append(load_audio(STORY).pcm)
    return _write(folder / f"joined-{count}{'-story' if told else ''}.wav", *parts)


def _write(path: Path, *parts: F32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav(np.concatenate(parts)))
    return path
