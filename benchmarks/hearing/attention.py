"""Whether people are heard after minutes of sounds: where the voice detectors and the rules behind them hear speech."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from benchmarks.hearing import people
from benchmarks.hearing.sounds import landscape
from benchmarks.hearing.speech import FRAME, level, to_level
from salmonrun.runtime import EndpointConfig, TranscribeConfig
from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.longform.windows import Splitter
from salmonrun.runtime.streaming.endpoint import Endpointer
from salmonrun.runtime.vad import VAD_HOP, Vad, load_vad

LEVELS_DB = (-35.0, -15.0)  # dBFS of the people
SNR_DB = (3.0, 15.0)  # of people who speak while the sounds go on
BEFORE_S, BEHIND_S = 0.5, 3.0  # around them, in a quiet room
FLOOR_DB = -60.0
HEARD = 0.5  # of what was said, at least, in what is answered about
KINDS: tuple[Literal["silero", "energy"], ...] = ("silero", "energy")
Spans = list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Trial:
    """Somebody speaks after sounds."""

    pcm: F32  # [N] at 16 kHz
    start: int  # first sample with a voice
    end: int


@dataclass(frozen=True)
class Heard:
    """Of several trials."""

    trials: int
    not_heard: int  # of them
    beginning_cut: int  # of them: heard, but not from the first sample on
    false_starts: int  # pieces of nothing but sounds that are taken for speech
    sounds_s: float

    @property
    def false_starts_in_10_minutes(self) -> float:
        """Comparable between trials of any length."""
        return self.false_starts * 600 / self.sounds_s


def attention(folder: Path, seed: int, sounds_s: Sequence[float], limit: int | None) -> dict[str, dict[str, Heard]]:
    """Situation -> detector and rule -> how people are heard."""
    recorded, voices = people.music(folder), list(people.people(folder, seed).values())
    rng = np.random.default_rng(seed)
    voices = [voices[index] for index in rng.permutation(len(voices))[:limit]]
    found: dict[str, dict[str, Heard]] = {}
    for seconds in sounds_s:
        for name, make in ((f"after {seconds:g} s of sounds", after), (f"over sounds, after {seconds:g} s", over)):
            found[name] = _hear_all(name, voices, make, seconds, recorded, seed)
    return found


def _hear_all(
    name: str, voices: list[F32], make: Callable[..., Trial], seconds: float, recorded: list[F32], seed: int
) -> dict[str, Heard]:
    heard: dict[str, list[tuple[Trial, Spans]]] = {}
    for index, voice in enumerate(tqdm(voices, desc=name, unit="person")):
        trial = make(voice, np.random.default_rng([seed, index]), seconds, recorded)
        for kind in KINDS:
            vad = replay(load_vad(kind), trial.pcm)
            heard.setdefault(f"transcribe, {kind}", []).append((trial, windows(trial.pcm, vad)))
            heard.setdefault(f"stream, {kind}", []).append((trial, utterances(trial.pcm, vad)))
    return {way: _count(trials) for way, trials in heard.items()}


def after(voice: F32, rng: np.random.Generator, seconds: float, recorded: list[F32]) -> Trial:
    """The sounds are over, and somebody speaks."""
    sounds = landscape(rng, seconds, recorded)
    voice = to_level(voice, rng.uniform(*LEVELS_DB))
    quiet = [np.zeros(round(length * SAMPLE_RATE), np.float32) for length in (BEFORE_S, BEHIND_S)]
    rest = np.concatenate([quiet[0], voice, quiet[1]])
    rest += rng.standard_normal(len(rest), dtype=np.float32) * np.float32(10 ** (FLOOR_DB / 20))
    return _trial(np.concatenate([sounds, rest]), voice, len(sounds) + len(quiet[0]))


def over(voice: F32, rng: np.random.Generator, seconds: float, recorded: list[F32]) -> Trial:
    """The sounds go on while somebody speaks."""
    start = round((seconds + BEFORE_S) * SAMPLE_RATE)
    voice = to_level(voice, rng.uniform(*LEVELS_DB))
    pcm = landscape(rng, seconds + BEFORE_S + len(voice) / SAMPLE_RATE + BEHIND_S, recorded)
    behind = pcm[start : start + len(voice)]
    gain = 10 ** ((level(voice) - rng.uniform(*SNR_DB) - level(behind)) / 20)
    pcm *= np.float32(min(gain, 1 / np.abs(pcm).max()))
    pcm[start : start + len(voice)] += voice
    return _trial(np.clip(pcm, -1, 1), voice, start)


def _trial(pcm: F32, voice: F32, at: int) -> Trial:
    power = np.square(voice[: len(voice) // FRAME * FRAME].reshape(-1, FRAME)).mean(axis=1)
    loud = np.flatnonzero(power > np.percentile(power, 95) * 10**-2.5) * FRAME
    return Trial(pcm, at + int(loud[0]), at + int(loud[-1]) + FRAME)


class Replayed:
    """A detector's decisions again, for another rule."""

    def __init__(self, name: str, decisions: list[tuple[bool, int]]) -> None:
        self.name = name
        self.late = 0
        self._decisions = iter(decisions)

    def is_speech(self, hop: F32) -> bool:  # noqa: ARG002
        """The next one; silence behind the last."""
        speech, self.late = next(self._decisions, (False, 0))
        return speech


def replay(vad: Vad, pcm: F32) -> Vad:
    """A detector that has decided about all of it."""
    detector = vad.open()
    hops = range(0, len(pcm) - VAD_HOP + 1, VAD_HOP)
    decisions = [(detector.is_speech(pcm[at : at + VAD_HOP]), detector.late) for at in hops]
    return Vad(vad.name, lambda: Replayed(vad.name, decisions))


def windows(pcm: F32, vad: Vad) -> Spans:
    """What `transcribe` would answer about."""
    splitter = Splitter(vad.open(), TranscribeConfig())
    return [(window.start, window.end) for window in (*splitter.push(pcm), *splitter.finish())]


def utterances(pcm: F32, vad: Vad) -> Spans:
    """What a stream would answer about, if it understands something each time."""
    endpointer = Endpointer(EndpointConfig(), vad.open())
    found: Spans = []
    start: int | None = None
    for at in range(0, len(pcm) - VAD_HOP + 1, VAD_HOP):
        hop = pcm[at : at + VAD_HOP]
        speech = endpointer.hear(hop)
        if start is None and not speech:
            endpointer.keep(hop)
            continue
        if start is None:
            start = at - VAD_HOP * len(endpointer.take_kept())
        if endpointer.over(at + VAD_HOP - start, said=True):
            end = at + VAD_HOP - max(0, endpointer.silent - endpointer.behind)
            for kept in range(end, at + VAD_HOP, VAD_HOP):
                endpointer.keep(pcm[kept : kept + VAD_HOP])
            found.append((start, end))
            start = None
    return found if start is None else [*found, (start, len(pcm))]


def _count(heard: list[tuple[Trial, Spans]]) -> Heard:
    not_heard = cut = false_starts = 0
    for trial, spans in heard:
        about = [(start, end) for start, end in spans if start < trial.end and trial.start < end]
        shared = sum(min(end, trial.end) - max(start, trial.start) for start, end in about)
        missed = shared < HEARD * (trial.end - trial.start)
        not_heard += missed
        cut += not missed and about[0][0] > trial.start
        false_starts += sum(end <= trial.start for _, end in spans)
    sounds_s = sum(trial.start for trial, _ in heard) / SAMPLE_RATE
    return Heard(len(heard), not_heard, cut, false_starts, sounds_s)
