"""Protocol `reference`: what the reference competition measured, so that figures can be set beside published ones."""

import time

import numpy as np

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.decoder import prefill, step
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.latency.config import LatencyConfig
from salmonrun.runtime.latency.sampling import Case, Sample

SECONDS = 10
METRICS = ("ttft", "tpot", "latency")
DEFINITION = (
    "10 s of fixed Gaussian noise (numpy, seed 0), batch 1, greedy. ttft: filter bank, encoders, Q-Former, prompt and"
    " one prefill; loading and the log-mel spectrogram are not in it. tpot: exactly one cached step behind it. "
    "latency = ttft + tpot. The competition took the mean of 100 iterations after 10; here it is the median, until it"
    " is known. Its script read the clock before the GPU was done; here the work is done."
)


def noise() -> F32:
    """The recording: numpy.random.randn(160000), of a fixed seed."""
    return np.random.default_rng(0).standard_normal(SECONDS * SAMPLE_RATE).astype(np.float32)


def cases(engine: Engine, config: LatencyConfig) -> list[Case]:
    """One."""
    pcm = engine.model.load_audio(noise(), SAMPLE_RATE).pcm
    return [Case("10 s of noise", "latency", lambda: _run(engine, pcm, config.task, config.prompt))]


def _run(engine: Engine, pcm: F32, task: str | None, prompt: str | None) -> Sample:
    model = engine.model
    encoder, decoder = model.encoder, model.decoder
    mel = encoder.log_mel(pcm)
    started = time.perf_counter()
    bank = encoder.filter_bank(pcm)
    audio_embeds = encoder.qformer(encoder.whisper(mel), None if bank is None else encoder.audio_encoder(bank))
    embeds = model.inputs_embeds(model.request(task, prompt).prompt, audio_embeds)
    with decoder.open(1, len(embeds) + 1) as (slot,):
        logits = prefill(decoder, slot, embeds)
        token = int(np.argmax(logits))
        first = time.perf_counter()
        step(decoder, [slot], [token])
        second = time.perf_counter()
    return {"ttft": [first - started], "tpot": [second - first], "latency": [second - started]}
