"""The recordings of a data set, made in processes side by side, and their annotation."""

import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.training.data.augment import mix
from salmonrun.training.synthesis.plan import Plan
from salmonrun.training.synthesis.programs import DEFAULT_SYNTHESIZERS
from salmonrun.training.synthesis.sounds import CAPTIONS, make_sound
from salmonrun.training.synthesis.synthesizer import SpeechSynthesizer, Voice
from salmonrun.training.synthesis.texts import draw_sentence
from salmonrun.training.synthesis.voices import voices

QUESTION_SPEAKING = "is someone speaking"
QUESTION_SOUND = "what can be heard behind the voice"


@dataclass(frozen=True)
class _Set:
    """What the recordings of a data set have in common."""

    folder: Path
    plan: Plan
    held_out: bool
    voices: list[Voice]


def synthesize(
    out: str | Path,
    plan: Plan,
    held_out: bool = False,
    workers: int = 1,
    progress: bool = False,
    synthesizers: Sequence[SpeechSynthesizer] = DEFAULT_SYNTHESIZERS,
) -> Path:
    """Write recordings and their annotation JSON, `annotation.json`, into a folder.

    The same plan and engines give the same bytes. A held-out set shares neither a voice nor a sentence with a training
    set of the same engines; an engine with a single voice speaks in training sets alone.

    Args:
        out: folder to create or add to.
        plan: numbers and seed.
        held_out: make a set to measure on.
        workers: processes.
        progress: show a progress bar.
        synthesizers: whose voices speak.

    Returns:
        The annotation file.

    Raises:
        MissingExtraError: a text-to-speech engine is not installed.
        ConfigError: an engine has no voices, or fails.
    """
    speaking: list[Voice] = []
    if plan.speech or plan.mixtures:
        for synthesizer in synthesizers:
            synthesizer.require()
        speaking = voices(synthesizers, held_out)
    folder = Path(out)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    counts = (("speech", plan.speech), ("sound", plan.sounds), ("mixture", plan.mixtures))
    items = [(kind, index) for kind, count in counts for index in range(count)]
    make = partial(_make, _Set(folder, plan, held_out, speaking))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        made = tqdm(pool.imap(make, items, chunksize=16), total=len(items), disable=not progress, unit="recording")
        entries = [entry for several in made for entry in several]
    path = folder / "annotation.json"
    path.write_text(json.dumps({"annotation": entries, "plan": asdict(plan)}, indent=1) + "\n")
    return path


def _make(data: _Set, item: tuple[str, int]) -> list[dict[str, str]]:
    """Write one recording, "speech", "sound" or "mixture"; its annotations, one for each thing to be asked about it."""
    what, index = item
    rng = np.random.default_rng([data.plan.seed, data.held_out, sum(map(ord, what)), index])
    path = data.folder / "audio" / f"{what}_{index:06d}.flac"
    if what == "sound":
        kind = str(rng.choice(list(CAPTIONS)))
        pcm = make_sound(kind, rng, rng.uniform(1.5, 4.0)) * rng.uniform(0.1, 0.9)
        pcm = _add_noise(pcm, rng, 25.0, 40.0)
        entries = [_entry(path, "caption", CAPTIONS[kind]), _entry(path, "qa", "no", QUESTION_SPEAKING)]
    else:
        voice = data.voices[rng.integers(len(data.voices))]
        text = draw_sentence(rng, data.held_out)
        pcm = voice.synthesizer.synthesize(text, voice.name, rng, path.with_suffix(".wav"))
        path.with_suffix(".wav").unlink(missing_ok=True)
        pcm = _change_speed(pcm, rng, data.plan.speed)
        pcm = np.pad(pcm, tuple(rng.integers(0, SAMPLE_RATE // 4, 2))) * np.float32(rng.uniform(0.3, 1.0))
        entries = [_entry(path, "asr", text, voice=voice.label)]
        if what == "mixture":
            kind = str(rng.choice(list(CAPTIONS)))
            sound = make_sound(kind, rng, len(pcm) / SAMPLE_RATE)
            pcm = mix(pcm, sound, rng.uniform(3.0, 15.0))
            entries += [
                _entry(path, "qa", CAPTIONS[kind], QUESTION_SOUND),
                _entry(path, "qa", "yes", QUESTION_SPEAKING),
            ]
        elif rng.random() < 0.5:
            pcm = _add_noise(pcm, rng, *data.plan.snr_db)
    peak = float(np.abs(pcm).max())
    soundfile.write(path, pcm / max(1.0, peak / 0.99), SAMPLE_RATE, subtype="PCM_16")
    return entries


def _change_speed(pcm: F32, rng: np.random.Generator, share: float) -> F32:
    """Play faster or slower by up to a share, which moves pitch and formants too (Ko et al. 2015)."""
    if not share:
        return pcm
    factor = rng.uniform(1 - share, 1 + share)
    return np.asarray(soxr.resample(pcm, SAMPLE_RATE * factor, SAMPLE_RATE), np.float32)


def _entry(path: Path, task: str, text: str, question: str = "", voice: str = "") -> dict[str, str]:
    entry = {"path": f"audio/{path.name}", "text": text, "task": task, "Q": question}
    return entry | ({"voice": voice} if voice else {})


def _add_noise(pcm: F32, rng: np.random.Generator, low_db: float, high_db: float) -> F32:
    noise = rng.standard_normal(len(pcm)).astype(np.float32)
    return mix(pcm, noise, rng.uniform(low_db, high_db))
