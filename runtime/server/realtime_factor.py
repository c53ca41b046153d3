"""How much of real time a live stream takes on this machine, measured before clients come."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.latency.recording import Recording

STREAMS = 2  # at once, as in service: what they share is counted once
SECONDS = 8.0  # of speech for each
PIECE = SAMPLE_RATE // 10  # samples, as clients send them


def real_time_factor(engine: Engine, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of work for each second of a stream among others, with speech that does not pause for long."""
    recording = Recording.load(None)

    def hear(start_s: float) -> None:
        pcm = recording.cut(SECONDS, start_s)
        with engine.stream() as stream:
            for first in range(0, len(pcm), PIECE):
                stream.push(pcm[first : first + PIECE])
            stream.finish()

    hear(0.0)  # what is made once is not counted
    with ThreadPoolExecutor(STREAMS) as threads:
        started = clock()
        list(threads.map(hear, np.arange(STREAMS) * SECONDS))
        return (clock() - started) / (STREAMS * SECONDS)
