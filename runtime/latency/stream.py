"""Protocol `stream`: speech that comes while it is spoken, one stream at a time."""

import time
from collections.abc import Iterator

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.latency.config import LatencyConfig
from salmonrun.runtime.latency.recording import Recording, onset_s
from salmonrun.runtime.latency.sampling import Case, Sample
from salmonrun.runtime.streaming.config import StreamConfig

PIECE = SAMPLE_RATE // 10  # pushed at once
HEARD = ("first_partial", "update", "lag", "final", "updates", "rtf")  # of a stream alone: see `run_stream`
METRICS = (*HEARD, "at_once")
DEFINITION = (
    "Speech in pieces of 100 ms, {pace}, with the stream's defaults. first_partial: from where speech begins in it to "
    "the first text, stable or not. update: from where the last sample that an update needs is looked at to the "
    "update. final: from the last sample to the whole text. lag: how far an update is behind real time. updates: how "
    "many there were. rtf: time spent / length of the recording. at_once: the same recording to "
    "Engine.generate."
)


def definition(config: LatencyConfig) -> str:
    """What is measured, with these settings."""
    paced = "each at the time at which it would have been recorded"
    return DEFINITION.format(pace=paced if config.paced else "each as soon as the one before was heard")


def cases(engine: Engine, config: LatencyConfig, recording: Recording) -> list[Case]:
    """One; each repetition hears another part of the recording."""
    parts = _parts(config.utterance_s, recording)
    return [Case(f"{config.utterance_s:g} s", "final", lambda: _run(engine, config, next(parts)))]


def _parts(seconds: float, recording: Recording) -> Iterator[F32]:
    start_s = 0.0
    while True:
        yield recording.cut(seconds, start_s)
        start_s += seconds / 2


def _run(engine: Engine, config: LatencyConfig, pcm: F32) -> Sample:
    answer = GenerationConfig(max_new_tokens=config.tokens)
    sample = run_stream(engine, config, pcm)
    whole = engine.generate(pcm, task=config.task, prompt=config.prompt, config=answer, sample_rate=SAMPLE_RATE)
    return {**sample, "at_once": [whole.timings.total_s]}


def run_stream(engine: Engine, config: LatencyConfig, pcm: F32) -> Sample:
    """One utterance through a stream of its own."""
    answer = GenerationConfig(max_new_tokens=config.tokens)
    sample: Sample = {"first_partial": [], "update": [], "lag": []}
    begin, busy, updates, spoken = onset_s(pcm), 0.0, 0, 0.0
    with engine.stream(
        task=config.task, prompt=config.prompt, config=StreamConfig(block_s=config.block_s), generation=answer
    ) as stream:
        opened = time.perf_counter()
        for start in range(0, len(pcm), PIECE):
            piece = pcm[start : start + PIECE]
            recorded = opened + (start + len(piece)) / SAMPLE_RATE
            if config.paced and (wait := recorded - time.perf_counter()) > 0:
                time.sleep(wait)
            pushed = time.perf_counter()
            if start <= begin * SAMPLE_RATE:  # until the piece in which speech begins
                spoken = opened + begin if config.paced else pushed
            for update in stream.push(piece):
                updates += 1
                sample["update"].append(update.latency_s)
                sample["lag"].append(update.lag_s)
                if not sample["first_partial"] and (update.stable or update.partial):
                    sample["first_partial"].append(time.perf_counter() - spoken)
            busy += time.perf_counter() - pushed
        ended = time.perf_counter()
        stream.finish()
        final = time.perf_counter() - ended
    length_s = len(pcm) / SAMPLE_RATE
    return {**sample, "final": [final], "updates": [float(updates)], "rtf": [(busy + final) / length_s]}
