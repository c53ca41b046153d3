"""What an answer is, beside its text: why it ended, what was done to the audio, how long it took."""

from collections.abc import Generator
from dataclasses import dataclass, field

from salmonrun.runtime.answer import Answer
from salmonrun.runtime.audio import Audio
from salmonrun.runtime.search import FinishReason
from salmonrun.runtime.stopwatch import Stopwatch

NOT_ENCODING = ("audio", "prompt", "features", "prefill", "decode")  # every other stage is a graph of the encoder


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
    # All of the time: prompt (text to embeddings), audio (read, resampled), features, a stage for each graph of the
    # encoder, prefill, decode.
    stages: dict[str, float] = field(default_factory=dict)
    token_s: tuple[
        float, ...
    ] = ()  # from the call to each token; with beams to the end of the prefill and of the answer


@dataclass(frozen=True)
class Result:
    """An answer."""

    text: str
    token_ids: list[int]  # as generated, a final stop token included
    finish_reason: FinishReason
    timings: Timings
    notes: tuple[str, ...] = ()  # what was done to the audio, and why a text is empty


def make_result(said: Answer, audio: Audio, watch: Stopwatch) -> Result:
    """An answer's text with its timings."""
    token_s = tuple(at - watch.started for at in said.token_at)
    first, last = (token_s[0], token_s[-1]) if token_s else (0.0, 0.0)
    stages = watch.stages
    timings = Timings(
        features_s=stages.get("features", 0.0),
        encode_s=sum(seconds for stage, seconds in stages.items() if stage not in NOT_ENCODING),
        prefill_s=stages["prefill"],
        ttft_s=first,
        tpot_s=(last - first) / max(1, len(said.token_ids) - 1),
        total_s=watch.elapsed,
        audio_s=audio.source_s,
        stages=stages,
        token_s=token_s,
    )
    return Result(said.text, said.token_ids, said.finish_reason, timings, audio.notes)


def empty_result(audio: Audio, reason: FinishReason, note: str, watch: Stopwatch) -> Result:
    """No answer, and why."""
    watch.lap("prompt")
    timings = Timings(total_s=watch.elapsed, audio_s=audio.source_s, stages=watch.stages)
    return Result("", [], reason, timings, (*audio.notes, note))


def drain(pieces: Generator[str, None, Result]) -> Result:
    """Run a generator for its return value."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: Result = end.value
            return result
