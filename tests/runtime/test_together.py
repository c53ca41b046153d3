"""Requests of any kind from eight threads on one engine: each is answered as alone, and they share rounds."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from salmonrun.runtime import Engine, GenerationConfig, StreamConfig, TranscribeConfig
from salmonrun.runtime.decoder import Chunk
from tests.helpers.streams import AGREEMENT, BLOCKS, VARIED, before_rounds, hear, is_as_alone, noise

THREADS = 8
SAMPLED = GenerationConfig(max_new_tokens=12, do_sample=True, temperature=2.0, seed=5)
Ask = Callable[[Engine], Any]


def generate(seed: int, config: GenerationConfig) -> Ask:
    pcm = noise(20_000 + 1000 * seed, seed)

    def ask(engine: Engine) -> Any:
        return engine.generate(pcm, sample_rate=16000, task="asr", config=config).token_ids

    return ask


def listen(seed: int) -> Ask:
    pcm = noise(25_000, seed)

    def ask(engine: Engine) -> Any:
        with engine.listen(pcm, sample_rate=16000) as heard:
            return [heard.ask(prompt, config=VARIED).token_ids for prompt in ("Who?", "<SpeechHere> What?")]

    return ask


def stream(seed: int, config: StreamConfig) -> Ask:
    parts = np.array_split(noise(40_000, seed), 7)
    return lambda engine: hear(engine, parts, config)


def transcribe(seed: int, config: GenerationConfig) -> Ask:
    pcm = np.concatenate([np.concatenate([noise(16_000, seed + i), np.zeros(20_000, np.float32)]) for i in range(3)])

    def ask(engine: Engine) -> Any:
        cut = TranscribeConfig(window_s=2.0, overlap_s=0.5, vad="energy")
        segments, _ = engine.transcribe(pcm, sample_rate=16000, task="asr", generation=config, config=cut)
        return [(segment.token_ids, segment.window) for segment in segments]

    return ask


def mixed(seed: int) -> list[Ask]:
    """One of each kind."""
    beams = replace(VARIED, num_beams=3)
    return [
        generate(seed, VARIED),
        generate(seed, beams),
        generate(seed, SAMPLED),
        listen(seed),
        stream(seed, AGREEMENT),
        stream(seed, BLOCKS),
        transcribe(seed, VARIED),
        transcribe(seed, beams),
    ]


def test_everything_at_once(streaming_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 a row's logits do not depend on the other rows, but for rounding: no token differs."""
    requests = [ask for seed in range(4) for ask in mixed(seed)]
    rounds: list[int] = []
    expected = 0  # searches to wait for in the first round

    def count(chunks: Sequence[Chunk[Any]]) -> None:
        rounds.append(len(chunks))
        until = time.monotonic() + 30
        while len(rounds) == 1 and len(streaming_engine.model.rounds._open) < expected and time.monotonic() < until:
            time.sleep(0.001)

    before_rounds(monkeypatch, streaming_engine, count)
    alone = [ask(streaming_engine) for ask in requests]
    most = max(rounds)  # chunks of a round: those of the beams
    apart = len(rounds)
    rounds.clear()
    expected = THREADS

    def run(thread: int) -> list[Any]:
        return [ask(streaming_engine) for ask in requests[thread::THREADS]]

    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(run, range(THREADS)))
    in_order = [together[i % THREADS][i // THREADS] for i in range(len(requests))]
    assert is_as_alone(in_order, alone, streaming_engine)
    assert max(rounds) >= most + THREADS - 2  # a chunk or more for each of the eight
    assert len(rounds) < apart
    decoder: Any = streaming_engine.model.decoder
    table = getattr(decoder, "_table", None)  # of the torch decoder's pages: none is held
    assert not decoder._pool.caches if table is None else table._users.total() == 0
