"""Protocol `request`: recordings of several lengths, answered one after the other, stage by stage."""

import time
from collections.abc import Callable

import numpy as np

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.errors import AudioError
from salmonrun.runtime.latency.config import LatencyConfig
from salmonrun.runtime.latency.recording import Recording, wav
from salmonrun.runtime.latency.sampling import Case, Sample
from salmonrun.runtime.result import Timings

STAGES = ("prompt", "audio", "features", "whisper", "audio_encoder", "qformer", "prefill", "decode")
METRICS = (*STAGES, "ttft", "tpot", "total", "rtf")  # audio_encoder where there is one
DEFINITION = (
    "The bytes of a 16-bit WAV file of speech to Engine.generate, one at a time; stop tokens are ignored, so that "
    "every answer has the same number of tokens. Stages: prompt (text to embeddings), audio (read, resampled), "
    "features, each encoder graph, prefill, decode. ttft: from the call to the first token; with beams to the end of "
    "the prefill. tpot: between tokens; with beams the mean of an answer. rtf: total / length of the recording."
)


def cases(engine: Engine, config: LatencyConfig, recording: Recording) -> list[Case]:
    """One for each length and search."""
    return [
        Case(name(seconds, beams), "total", _runner(engine, config, recording, seconds, beams))
        for seconds in config.lengths_s
        for beams in config.num_beams
    ]


def name(seconds: float, beams: int) -> str:
    """Of a case."""
    return f"{seconds:g} s, " + ("greedy" if beams == 1 else f"{beams} beams")


def generation(config: LatencyConfig, beams: int) -> GenerationConfig:
    """An answer of exactly `config.tokens` tokens."""
    return GenerationConfig(max_new_tokens=config.tokens, num_beams=beams, stop_token_ids=(), stop_repetition=False)


def answer(engine: Engine, source: bytes, config: LatencyConfig, search: GenerationConfig) -> Timings:
    """How long an answer took.

    Raises:
        AudioError: there is none, because the recording is silent.
    """
    result = engine.generate(source, task=config.task, prompt=config.prompt, config=search)
    if len(result.token_ids) != search.max_new_tokens:
        raise AudioError(
            f"{result.timings.audio_s:g} s of the recording cannot be measured ({'; '.join(result.notes)}): choose "
            "another one, with speech from its beginning on"
        )
    return result.timings


def _runner(
    engine: Engine, config: LatencyConfig, recording: Recording, seconds: float, beams: int
) -> Callable[[], Sample]:
    source, search = wav(recording.cut(seconds)), generation(config, beams)

    def run() -> Sample:
        started = time.perf_counter()
        timings = answer(engine, source, config, search)
        total = time.perf_counter() - started
        gaps = [timings.tpot_s] if beams > 1 else np.diff(timings.token_s).tolist()
        stages = {stage: [taken] for stage, taken in timings.stages.items()}
        return {**stages, "ttft": [timings.ttft_s], "tpot": gaps, "total": [total], "rtf": [total / seconds]}

    return run
