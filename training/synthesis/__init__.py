"""A labelled data set without downloads: synthetic speech, sound events, mixtures of both with questions."""

import json
import multiprocessing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from runtime.audio import F32, SAMPLE_RATE
from runtime.errors import ConfigError
from training.synthesis.sounds import CAPTIONS, make_sound
from training.synthesis.texts import draw_sentence
from training.synthesis.voices import require_engines, speak, voices

QUESTION_SPEAKING = "is someone speaking"
QUESTION_SOUND = "what can be heard behind the voice"


@dataclass(frozen=True)
class Plan:
    """How much of what."""

    speech: int = 8000
    sounds: int = 2000
    mixtures: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.speech, self.sounds, self.mixtures) < 0 or self.speech + self.sounds + self.mixtures == 0:
            raise ConfigError(
                f"the numbers of speech, sounds and mixtures must be 0 or more, and not all 0; got {self}"
            )


@dataclass(frozen=True)
class _Item:
    """One recording to make."""

    kind: str  # "speech", "sound" or "mixture"
    index: int
    held_out: bool
    seed: int
    folder: str


def synthesize(out: str | Path, plan: Plan, held_out: bool = False, workers: int = 1, progress: bool = False) -> Path:
    """Write recordings and their annotation JSON, `annotation.json`, into a folder.

    The same plan gives the same bytes. A held-out set shares neither a voice nor a sentence with a training set.

    Args:
        out: folder to create or add to.
        plan: numbers and seed.
        held_out: make a set to measure on.
        workers: processes.
        progress: show a progress bar.

    Returns:
        The annotation file.

    Raises:
        MissingExtraError: a text-to-speech program is not installed.
    """
    if plan.speech or plan.mixtures:
        require_engines()
    folder = Path(out)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    counts = (("speech", plan.speech), ("sound", plan.sounds), ("mixture", plan.mixtures))
    items = [_Item(kind, i, held_out, plan.seed, str(folder)) for kind, count in counts for i in range(count)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        made = tqdm(pool.imap(_make, items, chunksize=16), total=len(items), disable=not progress, unit="recording")
        entries = [entry for several in made for entry in several]
    path = folder / "annotation.json"
    path.write_text(json.dumps({"annotation": entries, "plan": asdict(plan)}, indent=1) + "\n")
    return path


def _make(item: _Item) -> list[dict[str, str]]:
    """Write one recording; its annotations, one for each thing that can be asked about it."""
    rng = np.random.default_rng([item.seed, item.held_out, sum(map(ord, item.kind)), item.index])
    path = Path(item.folder) / "audio" / f"{item.kind}_{item.index:06d}.flac"
    if item.kind == "sound":
        kind = str(rng.choice(list(CAPTIONS)))
        pcm = make_sound(kind, rng, rng.uniform(1.5, 4.0)) * rng.uniform(0.1, 0.9)
        pcm = _add_noise(pcm, rng, 25.0, 40.0)
        entries = [_entry(path, "caption", CAPTIONS[kind]), _entry(path, "qa", "no", QUESTION_SPEAKING)]
    else:
        choices = voices(item.held_out)
        voice = choices[rng.integers(len(choices))]
        text = draw_sentence(rng, item.held_out)
        pcm = speak(text, voice, rng, path.with_suffix(".wav"))
        path.with_suffix(".wav").unlink()
        pcm = np.pad(pcm, tuple(rng.integers(0, SAMPLE_RATE // 4, 2))) * np.float32(rng.uniform(0.3, 1.0))
        entries = [_entry(path, "asr", text, voice=voice.label)]
        if item.kind == "mixture":
            kind = str(rng.choice(list(CAPTIONS)))
            sound = make_sound(kind, rng, len(pcm) / SAMPLE_RATE)
            pcm = _mix(pcm, sound[: len(pcm)], rng.uniform(3.0, 15.0))
            entries += [
                _entry(path, "qa", CAPTIONS[kind], QUESTION_SOUND),
                _entry(path, "qa", "yes", QUESTION_SPEAKING),
            ]
        elif rng.random() < 0.5:
            pcm = _add_noise(pcm, rng, 10.0, 40.0)
    peak = float(np.abs(pcm).max())
    soundfile.write(path, pcm / max(1.0, peak / 0.99), SAMPLE_RATE, subtype="PCM_16")
    return entries


def _entry(path: Path, task: str, text: str, question: str = "", voice: str = "") -> dict[str, str]:
    entry = {"path": f"audio/{path.name}", "text": text, "task": task, "Q": question}
    return entry | ({"voice": voice} if voice else {})


def _mix(pcm: F32, other: F32, snr_db: float) -> F32:
    """Add `other` [N] at a signal-to-noise ratio in dB."""
    other = np.pad(other, (0, len(pcm) - len(other)))
    power, other_power = (float(np.mean(np.square(x))) + 1e-12 for x in (pcm, other))
    return (pcm + other * np.sqrt(power / other_power / 10 ** (snr_db / 10))).astype(np.float32)


def _add_noise(pcm: F32, rng: np.random.Generator, low_db: float, high_db: float) -> F32:
    noise = rng.standard_normal(len(pcm)).astype(np.float32)
    return _mix(pcm, noise, rng.uniform(low_db, high_db))
