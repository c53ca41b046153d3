"""What an answer is, beside its text: why it ended, what was done to the audio, how long it took."""

import time
from collections.abc import Generator
from dataclasses import dataclass

from runtime.answer import Answer
from runtime.audio import Audio
from runtime.encoder import Encoded
from runtime.search import FinishReason


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of one request, each read after its work was done."""

    features_s: float = 0.0  # log-mel and filter bank
    encode_s: float = 0.0  # Whisper, the audio encoder, Q-Former
    prefill_s: float = 0.0  # prompt through the LLM
    ttft_s: float = 0.0  # from the call to the first token; with beams to the end of the prefill
    tpot_s: float = 0.0  # mean of the further tokens
    total_s: float = 0.0
    audio_s: float = 0.0  # length of the recording


@dataclass(frozen=True)
class Result:
    """An answer."""

    text: str
    token_ids: list[int]  # as generated, a final stop token included
    finish_reason: FinishReason
    timings: Timings
    notes: tuple[str, ...] = ()  # what was done to the audio, and why a text is empty


def make_result(said: Answer, audio: Audio, encoded: Encoded | None, started: float) -> Result:
    """An answer's text with its timings; `started` is the perf_counter of the request."""
    timings = Timings(
        features_s=encoded.features_s if encoded else 0.0,
        encode_s=encoded.encode_s if encoded else 0.0,
        prefill_s=said.prefill_s,
        ttft_s=said.first_token_at - started,
        tpot_s=said.tpot_s,
        total_s=time.perf_counter() - started,
        audio_s=audio.source_s,
    )
    return Result(said.text, said.token_ids, said.finish_reason, timings, audio.notes)


def empty_result(audio: Audio, reason: FinishReason, note: str, started: float) -> Result:
    """No answer, and why."""
    timings = Timings(total_s=time.perf_counter() - started, audio_s=audio.source_s)
    return Result("", [], reason, timings, (*audio.notes, note))


def drain(pieces: Generator[str, None, Result]) -> Result:
    """Run a generator for its return value."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: Result = end.value
            return result
