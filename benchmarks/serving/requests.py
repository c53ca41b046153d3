"""Recordings that so many clients ask about at once, each one after the other."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from openai import OpenAI

from salmonrun.runtime.latency.recording import Recording, wav


@dataclass(frozen=True)
class Answered:
    """What a run of requests took."""

    audio_s: float  # of all recordings
    took_s: float  # from the first request to the last answer
    request_s: tuple[float, ...]  # each


def measure(url: str, clients: int, requests: int, seconds: float) -> Answered:
    """So many requests about recordings of so many seconds, from so many clients; one more before warms up."""
    recording = Recording.load(None)
    files = [wav(recording.cut(seconds, 3.1 * number)) for number in range(requests)]
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
    model = next(iter(client.models.list())).id

    def ask(file: bytes) -> float:
        started = time.perf_counter()
        client.audio.transcriptions.create(file=("speech.wav", file), model=model)
        return time.perf_counter() - started

    ask(files[0])
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        taken = tuple(threads.map(ask, files))
    return Answered(requests * seconds, time.perf_counter() - started, taken)
