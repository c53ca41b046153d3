"""What tests of answers share: searches that show how a tiny model ranks all tokens, sounds, results without times."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from salmonrun.runtime import Engine, GenerationConfig, Result
from salmonrun.runtime.audio import F32
from salmonrun.runtime.manifest import ConfidenceThreshold
from salmonrun.runtime.model import Model

# The tiny model alone would repeat one token. Banning repetition makes its ranking of all tokens visible.
VARIED = GenerationConfig(max_new_tokens=24, no_repeat_ngram_size=1)
BEAMS = replace(VARIED, num_beams=3)
SAMPLED = GenerationConfig(max_new_tokens=24, do_sample=True, temperature=2.0, seed=1)
EACH_SEARCH = pytest.mark.parametrize("config", [VARIED, BEAMS, SAMPLED], ids=["greedy", "beams", "sampled"])


def noise(seconds: float, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16000)).astype(np.float32)


def answer(result: Result) -> tuple[str, list[int], str, tuple[str, ...]]:
    """A result without its timings."""
    return result.text, result.token_ids, result.finish_reason, result.notes


def with_manifest(engine: Engine, **changes: Any) -> Engine:
    """The same engine, had its bundle another manifest."""
    model = engine.model
    bundle = replace(model.bundle, manifest=replace(model.bundle.manifest, **changes))
    return Engine(Model(bundle, model.encoder, model.decoder, model.limits))


def with_threshold(engine: Engine, score: float) -> Engine:
    """The same engine, had its bundle this confidence threshold."""
    return with_manifest(engine, confidence=ConfidenceThreshold(score, 0.02, 50, "speech.json"))


def with_nothing(engine: Engine, text: str) -> Engine:
    """The same engine, had its model been trained to say this where there is nothing to be transcribed."""
    return with_manifest(engine, prompt=replace(engine.bundle.manifest.prompt, nothing=text))


def collect(pieces: Generator[str, None, Result]) -> tuple[list[str], Result]:
    result: list[Result] = []

    def until_done() -> Iterator[str]:
        result.append((yield from pieces))

    return list(until_done()), result[0]


def requests() -> list[tuple[F32, str, GenerationConfig]]:
    configs = [VARIED, BEAMS, SAMPLED, replace(SAMPLED, seed=7)]
    return [
        (noise(0.5 + 0.7 * i, seed=i) * (i + 1), f"Question {i}: what is it?", configs[i % len(configs)])
        for i in range(8)
    ]
