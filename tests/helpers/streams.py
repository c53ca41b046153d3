"""Tiny models that hear in blocks, and streams whose voice detection follows a script."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from salmonrun.runtime import EndpointConfig, Engine, GenerationConfig, Segment, StreamConfig, TranscribeConfig, Update
from salmonrun.runtime.audio import F32
from salmonrun.runtime.config import Block, BlockConfig, WindowConfig
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.vad import VAD_HOP, Vad
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.starting.presets import preset
from tests.helpers.answers import answer

# The tiny model alone would repeat itself. Banning repetition makes its ranking of all tokens visible.
VARIED = GenerationConfig(max_new_tokens=12, no_repeat_ngram_size=1)

WINDOW = 64_000  # samples the model hears at once
BLOCK = Block(16, 160)  # what the bundle prefers
PLAIN = GenerationConfig(max_new_tokens=12)
AT_THE_END_ONLY = 99  # hypotheses, more than a stream has: nothing is stable before the end
HOP_S = VAD_HOP / 16000
# In hops: rule 1 after 20, rule 2 after 10, rule 3 from 50 on; 3 of margin.
ENDPOINT = EndpointConfig(silence_s=20 * HOP_S, pause_s=10 * HOP_S, longest_s=50 * HOP_S, margin_s=3 * HOP_S)
# A random model's hypotheses hardly ever agree: here each one is believed, but for its last six tokens.
AGREEMENT = StreamConfig(policy="agreement", update_s=0.3, hypotheses=1, hold_back=6, endpoint=None)
BLOCKS = replace(AGREEMENT, policy="block", block_s=0.32)


def cut_at(**changes: Any) -> TranscribeConfig:
    """Pauses of half a second part, so at most 0.25 s are kept behind speech, whatever the default is."""
    return TranscribeConfig(**{"part_pause_s": 0.5} | changes)


def block_causal(window: int = 16, sounds: bool = True, max_s: float = 30.0) -> ModelConfig:
    """The tiny preset, to be trained for blocks of one and two units of 16 (or of 8 x 17) frames."""
    config = preset("tiny")
    blocks = {16: BlockConfig((16, 32), (16, 160)), 17: BlockConfig((136, 272), (136, 272))}[window]
    return replace(
        config,
        audio_encoder=config.audio_encoder if sounds else None,
        audio=replace(config.audio, window="trimmed", log_mel_max=1.5, min_s=0.32, max_s=max_s),
        qformer=replace(config.qformer, window=WindowConfig(window, window, 2)),
        streaming=blocks,
    )


def noise(samples: int, seed: int = 0) -> F32:
    """Noise that swells and fades every 0.1 s, in steps of 16-bit PCM."""
    rng = np.random.default_rng(seed)
    envelope = 10 ** rng.uniform(-1.5, 0, samples // 1600 + 1).repeat(1600)[:samples]
    return (np.round(rng.normal(0, 0.1, samples) * envelope * 2**15).clip(-(2**15), 2**15 - 1) / 2**15).astype(
        np.float32
    )


class Scripted:
    """Hears hops of silence, of speech, of silence, and so on, whatever the samples; the last kind goes on."""

    name = "scripted"

    def __init__(self, hops: tuple[int, ...], late: int = 0) -> None:
        self.late = late
        self._script = [index % 2 == 1 for index, count in enumerate(hops) for _ in range(count)]
        self._next = 0

    def is_speech(self, hop: F32) -> bool:
        speech = self._script[min(self._next, len(self._script) - 1)]
        self._next += 1
        return speech


def scripted(*hops: int, late: int = 0) -> Vad:
    """A detector that hears so many hops of silence, then of speech, and so on, each noticed so late."""
    return Vad("scripted", lambda: Scripted(hops, late))


def pieces(pcm: npt.NDArray[Any], rng: np.random.Generator, longest: int) -> Iterator[npt.NDArray[Any]]:
    """Cut anywhere; some pieces are empty."""
    first = 0
    while first < len(pcm):
        end = first + int(rng.integers(0, longest + 1))
        yield pcm[first:end]
        first = end


def facts(update: Update) -> Update:
    """What does not depend on the clock."""
    return replace(update, latency_s=0.0, lag_s=0.0)


Outcome = tuple[list[Update], tuple[str, list[int], str, tuple[str, ...]], tuple[Segment, ...]]


def hear(
    engine: Engine,
    parts: Iterable[npt.NDArray[Any]],
    config: StreamConfig,
    generation: GenerationConfig = VARIED,
    sample_rate: int = 16000,
    prompt: str | None = None,
) -> Outcome:
    """All that a stream says about audio that comes in parts."""
    with engine.stream(config=config, generation=generation, sample_rate=sample_rate, prompt=prompt) as stream:
        updates = [facts(update) for part in parts for update in stream.push(part)]
        return updates, answer(stream.finish()), stream.segments


def is_as_alone(found: Any, alone: Any, engine: Engine) -> bool:
    """Whether answers in company are those alone. PyTorch rounds sums of several rows in another order: with its
    decoder, scores may differ by 1e-5; all else is equal.
    """
    return bool(_values(found) == _values(alone, 1e-5 if engine.report().decoder == "torch" else 0.0))


def _values(value: Any, tolerance: float = 0.0) -> Any:
    """Lists of all that is in it; numbers that are no integers are equal to those as near as the tolerance."""
    if isinstance(value, float):
        return pytest.approx(value, rel=0, abs=tolerance, nan_ok=True) if tolerance else value
    if isinstance(value, list | tuple):
        return [_values(each, tolerance) for each in value]
    if is_dataclass(value):
        return [_values(getattr(value, field.name), tolerance) for field in fields(value)]
    return value


def without_stop(tokens: list[int]) -> list[int]:
    """A stream's answers do not hold the stop token."""
    return tokens[:-1] if tokens[-1] == 257 else tokens


def before_rounds(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, happen: Callable[[Sequence[Chunk[Any]]], None]
) -> None:
    """Have something happen before each round of the decoder."""
    forward = engine.model.decoder.forward

    def patched(chunks: Sequence[Chunk[Any]]) -> list[F32]:
        happen(chunks)
        return forward(chunks)

    monkeypatch.setattr(engine.model.decoder, "forward", patched)


def before_steps(monkeypatch: pytest.MonkeyPatch, engine: Engine, happen: Callable[[], None]) -> None:
    """Have something happen before each round that appends single tokens alone."""
    before_rounds(
        monkeypatch, engine, lambda chunks: happen() if all(len(chunk.inputs) == 1 for chunk in chunks) else None
    )
