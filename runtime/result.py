"""What an answer is, beside its text: why it ended, what was done to the audio, how long it took."""

import logging
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from salmonrun.runtime.answer import Answer
from salmonrun.runtime.audio import Audio
from salmonrun.runtime.log import LOGGER, stages_ms
from salmonrun.runtime.model import NOTHING_HEARD, Model
from salmonrun.runtime.repetition import repeated
from salmonrun.runtime.search import FinishReason
from salmonrun.runtime.stopwatch import Stopwatch

ENCODERS = ("whisper", "audio_encoder", "qformer")


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of one request, each read after its work was done."""

    audio_s: float = 0.0  # length of the recording
    # All of the time: prompt (text to embeddings), audio (read, resampled), features, a stage for each graph of the
    # encoder, prefill, decode; wait, where the encoders were another's turn. A stream that is finished has one stage,
    # finish.
    stages: dict[str, float] = field(default_factory=dict)
    # From the call to each token; with beams to the end of the prefill and of the answer.
    token_s: tuple[float, ...] = ()
    tokens: int = 0  # of the answer

    @property
    def features_s(self) -> float:
        """Log-mel and filter bank."""
        return self.stages.get("features", 0.0)

    @property
    def encode_s(self) -> float:
        """Whisper, the audio encoder, Q-Former."""
        return sum(self.stages.get(stage, 0.0) for stage in ENCODERS)

    @property
    def prefill_s(self) -> float:
        """The prompt through the LLM."""
        return self.stages.get("prefill", 0.0)

    @property
    def ttft_s(self) -> float:
        """From the call to the first token; with beams to the end of the prefill."""
        return self.token_s[0] if self.token_s else 0.0

    @property
    def tpot_s(self) -> float:
        """Mean of the tokens behind the first."""
        return (self.token_s[-1] - self.token_s[0]) / max(1, self.tokens - 1) if self.token_s else 0.0

    @property
    def total_s(self) -> float:
        """From the call to the whole answer."""
        return sum(self.stages.values())

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        derived = ("features_s", "encode_s", "prefill_s", "ttft_s", "tpot_s", "total_s")
        return {name: getattr(self, name) for name in (*derived, "audio_s", "stages", "token_s")}


@dataclass(frozen=True)
class Result:
    """An answer."""

    text: str
    token_ids: list[int]  # as generated, a final stop token included
    finish_reason: FinishReason
    timings: Timings
    notes: tuple[str, ...] = ()  # what was done to the audio, and why a text is empty
    # Of each token, its log probability by the model's own logits: before penalties, bans and temperature.
    token_logprobs: list[float] = field(default_factory=list)
    score: float | None = None  # their mean; in a stream of all utterances, their stop tokens too; None: no tokens
    low_confidence: bool | None = None  # whether that is below the bundle's threshold; None: it has none, or no score

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**vars(self), "timings": self.timings.as_dict()}


def make_result(model: Model, answer: Answer, audio: Audio, watch: Stopwatch) -> Result:
    """An answer's text with its timings."""
    token_s = tuple(at - watch.started for at in answer.token_at)
    timings = Timings(audio.source_s, watch.stages, token_s, len(answer.token_ids))
    result = Result(
        text=answer.text,
        token_ids=answer.token_ids,
        finish_reason=answer.finish_reason,
        timings=timings,
        notes=(*audio.notes, *_doubts(answer)),
        token_logprobs=answer.logprobs,
        score=answer.score,
        low_confidence=model.low_confidence(answer.score),
    )
    return _logged(result)


def _doubts(answer: Answer) -> list[str]:
    nothing = NOTHING_HEARD if answer.heard_nothing else ""
    return [note for note in (nothing, repeated(answer.token_ids)) if note]


def empty_result(audio: Audio, reason: FinishReason, note: str, watch: Stopwatch) -> Result:
    """No answer, and why."""
    watch.lap("prompt")
    return _logged(Result("", [], reason, Timings(audio.source_s, watch.stages), (*audio.notes, note)))


def _logged(result: Result) -> Result:
    timings, count = result.timings, len(result.token_ids)
    if LOGGER.isEnabledFor(logging.DEBUG):
        spent = stages_ms(timings.stages)
        LOGGER.debug("%.1f s of audio: %d tokens, %s; ms: %s", timings.audio_s, count, result.finish_reason, spent)
    return result


def drain(pieces: Generator[str, None, Result]) -> Result:
    """Run a generator for its return value."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: Result = end.value
            return result
