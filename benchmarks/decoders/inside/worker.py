"""One decoder of a bundle: a JSON request on a line of stdin, a JSON reply on a line of stdout.

load    bundle, decoder, threads -> seconds, weight_bytes, report
time    case                     -> seconds, peak_rss: see CASES
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.decoder import prefill, step, verify
from salmonrun.runtime.latency.recording import STORY
from salmonrun.runtime.report import peak_resident_bytes

Json = dict[str, Any]
CONTEXT = 128  # positions that a sequence has when it gets more
STEPS = 16  # in a row, of which one takes the mean
ANSWER = 32  # tokens about ten seconds of a story
ROOM = 1024


class Measured:
    """An engine, and what it takes."""

    def __init__(self, bundle: str, decoder: Literal["onnx", "native"], threads: int) -> None:
        self.engine = Engine.load(bundle, decoder=decoder, threads=threads, verify=False)
        self.decoder = self.engine.model.decoder
        manifest = self.engine.bundle.manifest
        native, beside = manifest.llm.weights.native, {manifest.llm.embedding.file, *manifest.llm.weights.files}
        graph = {name for name in manifest.files if name.startswith("llm/")} - beside
        read = {native.file} if native and decoder == "native" else graph
        self.weight_bytes = sum(manifest.files[name].size for name in read)
        self.ids = np.random.default_rng(0).integers(0, manifest.llm.vocab_size, ROOM).tolist()

    def prompt(self, positions: int) -> float:
        """Of so many tokens, to the logits of the last."""
        with self.decoder.open(1, positions) as (slot,):
            embeds = self.decoder.embed(self.ids[:positions])
            started = time.perf_counter()
            prefill(self.decoder, slot, embeds)
            return time.perf_counter() - started

    def tokens(self, slots: int) -> float:
        """One token of each of so many slots."""
        with self.decoder.open(slots, ROOM) as opened:
            for slot in opened:
                prefill(self.decoder, slot, self.decoder.embed(self.ids[:CONTEXT]))
            step(self.decoder, opened, self.ids[:slots])
            started = time.perf_counter()
            for _ in range(STEPS):
                step(self.decoder, opened, self.ids[:slots])
            return (time.perf_counter() - started) / STEPS

    def drafted(self, positions: int) -> float:
        """So many tokens of one slot, with the logits of each."""
        with self.decoder.open(1, ROOM) as (slot,):
            prefill(self.decoder, slot, self.decoder.embed(self.ids[:CONTEXT]))
            started = time.perf_counter()
            for _ in range(STEPS // 2):
                verify(self.decoder, slot, self.ids[:positions])
                self.decoder.truncate(slot, CONTEXT)
            return (time.perf_counter() - started) / (STEPS // 2)

    def answer(self, beams: int) -> float:
        """End to end: ten seconds of a story, an answer of fixed length."""
        config = GenerationConfig(num_beams=beams, max_new_tokens=ANSWER, min_new_tokens=ANSWER, stop_repetition=False)
        recording = self.engine.model.load_audio(str(STORY), None).first(10)
        started = time.perf_counter()
        self.engine.generate(recording, task="asr", config=config)
        return time.perf_counter() - started


CASES: dict[str, Callable[[Measured], float]] = {
    "a token": lambda it: it.tokens(1),
    "a token of each of 8 slots": lambda it: it.tokens(8),
    "8 tokens of one slot": lambda it: it.drafted(8),
    "a prompt of 32": lambda it: it.prompt(32),
    "a prompt of 128": lambda it: it.prompt(128),
    "a prompt of 512": lambda it: it.prompt(512),
    "an answer, greedy": lambda it: it.answer(1),
    "an answer, 4 beams": lambda it: it.answer(4),
}


def serve() -> None:
    """Answer until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between
    measured: Measured | None = None
    for line in sys.stdin:
        request: Json = json.loads(line)
        reply: Json
        if request.pop("do") == "load":
            started = time.perf_counter()
            measured = Measured(**request)
            seconds = time.perf_counter() - started
            reply = {
                "seconds": seconds,
                "weight_bytes": measured.weight_bytes,
                "report": str(measured.decoder.describe()),
            }
        else:
            assert measured
            reply = {"seconds": CASES[request["case"]](measured), "peak_rss": peak_resident_bytes()}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    serve()
