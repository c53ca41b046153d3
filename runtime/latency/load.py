"""Protocol `load`: many streams, or many requests, at once on one engine."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from salmonrun.runtime.audio import F32
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.latency.config import LatencyConfig
from salmonrun.runtime.latency.recording import Recording, wav
from salmonrun.runtime.latency.request import answer, generation
from salmonrun.runtime.latency.sampling import Case, Measured, Sample
from salmonrun.runtime.latency.stream import HEARD, run_stream

STAGGER_S = 0.25  # between the starts of streams: they are not opened in step
METRICS = {"streams": HEARD, "requests": ("ttft", "tpot", "total")}  # on which limits can be set
DEFINITION = (
    "N threads on one engine. Streams: each hears another part of the recording, as in `stream`; audio_per_s: seconds"
    " of audio heard in a second, all together. Requests: each thread sends its next one when it has an answer, "
    "twice; ttft and tpot as in `request`, tokens_per_s of all together. Keeps real time: the lag's 95th percentile "
    "stays below {max_lag_s:g} s."
)


def cases(engine: Engine, config: LatencyConfig, recording: Recording) -> list[Case]:
    """One for each number of clients."""
    run = run_stream if config.load_of == "streams" else _requests
    headline = "final" if config.load_of == "streams" else "total"
    return [
        Case(
            f"{count} {config.load_of if count > 1 else config.load_of.removesuffix('s')}",
            headline,
            _runner(run, engine, config, recording, count),
        )
        for count in config.concurrency
    ]


def keeps_real_time(measured: list[Measured], config: LatencyConfig) -> dict[str, bool]:
    """Case -> whether so many streams do; nothing of requests, which have no pace."""
    lags = {case.name: case.values("lag") for case in measured}
    return {name: bool(np.quantile(values, 0.95) <= config.max_lag_s) for name, values in lags.items() if values}


def _runner(
    run: Callable[[Engine, LatencyConfig, F32], Sample],
    engine: Engine,
    config: LatencyConfig,
    recording: Recording,
    count: int,
) -> Callable[[], Sample]:
    """All clients at once; what they found is put together."""
    stagger_s = STAGGER_S if config.load_of == "streams" and config.paced else 0.0
    parts = [recording.cut(config.utterance_s, i * config.utterance_s / 2) for i in range(count)]

    def repetition() -> Sample:
        begin = threading.Barrier(count)

        def client(index: int) -> Sample:
            begin.wait()
            time.sleep(index * stagger_s)
            return run(engine, config, parts[index])

        started = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            samples = list(pool.map(client, range(count)))
        elapsed = time.perf_counter() - started
        together = {metric: [value for sample in samples for value in sample[metric]] for metric in samples[0]}
        return {**together, **_throughput(config, count, together, elapsed)}

    return repetition


def _throughput(config: LatencyConfig, count: int, together: Sample, elapsed: float) -> Sample:
    if config.load_of == "streams":
        return {"audio_per_s": [count * config.utterance_s / elapsed]}
    answers = len(together["total"])
    return {"requests_per_s": [answers / elapsed], "tokens_per_s": [answers * config.tokens / elapsed]}


def _requests(engine: Engine, config: LatencyConfig, pcm: F32) -> Sample:
    source, search = wav(pcm), generation(config, 1)
    sample: Sample = {"ttft": [], "tpot": [], "total": []}
    for _ in range(2):
        timings = answer(engine, source, config, search)
        sample["ttft"].append(timings.ttft_s)
        sample["tpot"] += np.diff(timings.token_s).tolist()
        sample["total"].append(timings.total_s)
    return sample
