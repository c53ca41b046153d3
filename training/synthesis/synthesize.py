"""The recordings of a data set, made in processes side by side, and their annotation."""

import io
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.training.data.acoustics import change_speed, mix, trim
from salmonrun.training.synthesis.others import draw_other
from salmonrun.training.synthesis.plan import Plan
from salmonrun.training.synthesis.programs import DEFAULT_SYNTHESIZERS, ESPEAK_SPEAKERS, HELD_OUT_SPEAKERS, Espeak
from salmonrun.training.synthesis.sounds import CAPTIONS, make_sound
from salmonrun.training.synthesis.synthesizer import SpeechSynthesizer, Voice
from salmonrun.training.synthesis.texts import draw_fragment, draw_sentence
from salmonrun.training.synthesis.tunes import make_tune
from salmonrun.training.synthesis.voices import voices

QUESTION_SPEAKING = "is someone speaking"
QUESTION_SOUND = "what can be heard behind the voice"
TUNES = 0.25  # of the recordings of others
PAUSE_S = (0.1, 0.9)  # between the pieces of a sentence


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
    if plan.others:
        Espeak().require()  # for the other languages
    if plan.speech or plan.mixtures or plan.others:
        for synthesizer in synthesizers:
            synthesizer.require()
        speaking = voices(synthesizers, held_out)
    folder = Path(out)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    counts = (("speech", plan.speech), ("sound", plan.sounds), ("mixture", plan.mixtures), ("other", plan.others))
    items = [(kind, index) for kind, count in counts for index in range(count)]
    make = partial(_make, _Set(folder, plan, held_out, speaking))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        made = tqdm(pool.imap(make, items, chunksize=16), total=len(items), disable=not progress, unit="recording")
        entries = [entry for several in made for entry in several]
    path = folder / "annotation.json"
    filled = path.with_name(f".{path.name}.partial")  # there is none, or a whole one: a run that is killed is run again
    filled.write_text(json.dumps({"annotation": entries, "plan": asdict(plan)}, indent=1) + "\n")
    filled.replace(path)
    return path


def _make(data: _Set, item: tuple[str, int]) -> list[dict[str, str]]:
    """Write one recording of a kind; its annotations, one for each thing to be asked about it."""
    kind, index = item
    rng = np.random.default_rng([data.plan.seed, data.held_out, sum(map(ord, kind)), index])
    path = data.folder / "audio" / f"{kind}_{index:06d}.flac"
    make = {"speech": _speech, "sound": _sound, "mixture": _mixture, "other": _other}[kind]
    pcm, entries = make(data, rng, path)
    peak = float(np.abs(pcm).max())
    content = io.BytesIO()
    soundfile.write(content, pcm / max(1.0, peak / 0.99), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    path.write_bytes(content.getvalue())  # libsndfile takes a full disk for a wrong format; this says what it is
    return entries


def _sound(data: _Set, rng: np.random.Generator, path: Path) -> tuple[F32, list[dict[str, str]]]:
    kind = str(rng.choice(list(CAPTIONS)))
    pcm = make_sound(kind, rng, rng.uniform(1.5, 4.0)) * rng.uniform(0.1, 0.9)
    entries = [_entry(path, "caption", CAPTIONS[kind]), _entry(path, "qa", "no", QUESTION_SPEAKING)]
    if data.plan.nothing:
        entries.append(_entry(path, "asr", data.plan.nothing))
    return _add_noise(pcm, rng, 25.0, 40.0), entries


def _speech(data: _Set, rng: np.random.Generator, path: Path) -> tuple[F32, list[dict[str, str]]]:
    plan = data.plan
    voice = data.voices[rng.integers(len(data.voices))]
    fragment = bool(plan.fragments) and rng.random() < plan.fragments
    text = draw_fragment(rng, data.held_out) if fragment else draw_sentence(rng, data.held_out)
    apart = bool(plan.pauses) and rng.random() < plan.pauses
    pcm = _played(_spoken(voice, text, rng, path, apart), plan, rng)
    if rng.random() < 0.5:
        pcm = _add_noise(pcm, rng, *plan.snr_db)
    return pcm, [_entry(path, "asr", text, voice=voice.label)]


def _mixture(data: _Set, rng: np.random.Generator, path: Path) -> tuple[F32, list[dict[str, str]]]:
    voice = data.voices[rng.integers(len(data.voices))]
    text = draw_sentence(rng, data.held_out)
    pcm = _played(_spoken(voice, text, rng, path), data.plan, rng)
    kind = str(rng.choice(list(CAPTIONS)))
    sound = make_sound(kind, rng, len(pcm) / SAMPLE_RATE)
    return mix(pcm, sound, rng.uniform(3.0, 15.0)), [
        _entry(path, "asr", text, voice=voice.label),
        _entry(path, "qa", CAPTIONS[kind], QUESTION_SOUND),
        _entry(path, "qa", "yes", QUESTION_SPEAKING),
    ]


def _other(data: _Set, rng: np.random.Generator, path: Path) -> tuple[F32, list[dict[str, str]]]:
    if rng.random() < TUNES:
        tune = make_tune(rng, rng.uniform(1.5, 5.0)) * np.float32(rng.uniform(0.1, 0.9))
        return tune, [_entry(path, "asr", data.plan.nothing)]
    language, text = draw_other(rng, data.held_out)
    if language == "en":
        voice = data.voices[rng.integers(len(data.voices))]
    else:
        speakers = HELD_OUT_SPEAKERS if data.held_out else ESPEAK_SPEAKERS
        voice = Voice(Espeak(), f"{language}+{rng.choice(speakers)}")
    pcm = _played(_spoken(voice, text, rng, path), data.plan, rng)
    if rng.random() < 0.5:
        pcm = _add_noise(pcm, rng, *data.plan.snr_db)
    return pcm, [_entry(path, "asr", data.plan.nothing, voice=voice.label)]


def _spoken(voice: Voice, text: str, rng: np.random.Generator, path: Path, apart: bool = False) -> F32:
    """A text in one go; or each of a few pieces by itself and `apart`, as people say what they read or look for."""
    scratch = path.with_suffix(".wav")
    pieces = _split(text.split(), rng) if apart else [text]
    spoken = [voice.synthesizer.synthesize(piece, voice.name, rng, scratch) for piece in pieces]
    scratch.unlink(missing_ok=True)
    if not apart:
        return spoken[0]
    joined = [trim(spoken[0])]
    for piece in spoken[1:]:
        joined += [np.zeros(round(rng.uniform(*PAUSE_S) * SAMPLE_RATE), np.float32), trim(piece)]
    return np.concatenate(joined)


def _split(words: list[str], rng: np.random.Generator) -> list[str]:
    """Words in pieces: every word by itself in a third of the texts, else cut at one to three places."""
    places = list(range(1, len(words)))
    if rng.random() > 1 / 3 and len(words) > 1:
        places = sorted(rng.choice(places, int(rng.integers(1, min(3, len(places)) + 1)), replace=False).tolist())
    edges = [0, *places, len(words)]
    return [" ".join(words[first:end]) for first, end in pairwise(edges)]


def _played(pcm: F32, plan: Plan, rng: np.random.Generator) -> F32:
    """At another speed and level, with a little silence around."""
    if plan.speed:
        pcm = change_speed(pcm, rng.uniform(1 - plan.speed, 1 + plan.speed))
    return np.pad(pcm, tuple(rng.integers(0, SAMPLE_RATE // 4, 2))) * np.float32(rng.uniform(0.3, 1.0))


def _entry(path: Path, task: str, text: str, question: str = "", voice: str = "") -> dict[str, str]:
    entry = {"path": f"audio/{path.name}", "text": text, "task": task, "Q": question}
    return entry | ({"voice": voice} if voice else {})


def _add_noise(pcm: F32, rng: np.random.Generator, low_db: float, high_db: float) -> F32:
    noise = rng.standard_normal(len(pcm)).astype(np.float32)
    return mix(pcm, noise, rng.uniform(low_db, high_db))
