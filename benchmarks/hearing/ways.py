"""The ways to hear a scene: each sentence alone, the whole as a recording, the whole as a stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from benchmarks.hearing.scenes import Scene, Spoken
from salmonrun.runtime import EndpointConfig, Engine, StreamConfig, TranscribeConfig, Update
from salmonrun.runtime.audio import F32, SAMPLE_RATE

PIECE = SAMPLE_RATE // 10
AROUND = round(0.3 * SAMPLE_RATE)  # of a sentence alone, at most, in front of it and behind it


@dataclass(frozen=True)
class Said:
    """A text, where it is, and when a stream had it."""

    text: str
    start: int  # sample
    end: int
    shown_s: float | None = None  # of the audio when the first of it was shown
    over_s: float | None = None  # and when it was over


@dataclass(frozen=True)
class Way:
    """One way to hear."""

    how: Literal["alone", "transcribe", "agreement", "block"]
    vad: Literal["silero", "energy", "none"]

    @property
    def name(self) -> str:
        """Heads its column."""
        if self.how in ("agreement", "block"):
            return f"stream, {self.how}, {self.vad}"
        return self.how if self.vad == "none" else f"{self.how}, {self.vad}"


def ways(engine: Engine) -> list[Way]:
    """All that a bundle has."""
    policies = ("agreement", "block") if engine.bundle.manifest.streaming else ("agreement",)
    detected = [Way(how, vad) for how in ("transcribe", *policies) for vad in ("silero", "energy")]
    return [Way("alone", "none"), *detected]


def hear(engine: Engine, scene: Scene, way: Way) -> list[Said]:
    """What is understood, in the order of time."""
    if way.how == "alone":
        return [_alone(engine, scene, one) for one in scene.spoken]
    assert way.vad != "none"
    if way.how == "transcribe":
        config = TranscribeConfig(vad=way.vad)
        segments, _ = engine.transcribe(scene.pcm, task="asr", sample_rate=SAMPLE_RATE, config=config)
        return [Said(segment.text, segment.start_sample, segment.end_sample) for segment in segments]
    return _stream(engine, scene.pcm, StreamConfig(policy=way.how, endpoint=EndpointConfig(vad=way.vad)))


def _alone(engine: Engine, scene: Scene, spoken: Spoken) -> Said:
    """A sentence, with half of the pauses around it."""
    edges = [0, *(edge for one in scene.spoken for edge in (one.start, one.end)), len(scene.pcm)]
    pauses = [end - start for start, end in list(pairwise(edges))[::2]]
    index = scene.spoken.index(spoken)
    start, end = (
        spoken.start - min(AROUND, pauses[index] // 2),
        spoken.end + min(AROUND, pauses[index + 1] // 2),
    )
    result = engine.generate(scene.pcm[start:end], task="asr", sample_rate=SAMPLE_RATE)
    return Said(result.text, start, end)


def _stream(engine: Engine, pcm: F32, config: StreamConfig) -> list[Said]:
    said: list[Said] = []
    shown_s: float | None = None
    with engine.stream(task="asr", config=config) as stream:
        for update in _updates(stream.push(piece) for piece in np.split(pcm, range(PIECE, len(pcm), PIECE))):
            if shown_s is None and (update.delta + update.partial).strip():
                shown_s = update.audio_s
            if one := update.segment:
                said.append(Said(one.text, one.start_sample, one.end_sample, shown_s, update.audio_s))
                shown_s = None
        stream.finish()
        over_s = len(pcm) / SAMPLE_RATE
        for one in stream.segments[len(said) :]:
            said.append(Said(one.text, one.start_sample, one.end_sample, shown_s or over_s, over_s))
    return said


def _updates(pushes: Iterator[list[Update]]) -> Iterator[Update]:
    for updates in pushes:
        yield from updates
