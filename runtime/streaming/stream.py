"""A stream: PCM goes in as it comes, a text that grows comes out. `Stream.push` is the path."""

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, SupportsIndex

import numpy as np
import numpy.typing as npt

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.errors import AudioError, ClosedError, ConfigError, PromptError, SharingError
from salmonrun.runtime.heard import listen
from salmonrun.runtime.model import Model
from salmonrun.runtime.repetition import repeated
from salmonrun.runtime.request import Request
from salmonrun.runtime.result import Result, Timings, drain
from salmonrun.runtime.search import FinishReason, Hypothesis, mean
from salmonrun.runtime.segment import Segment
from salmonrun.runtime.streaming.agreement import LocalAgreement
from salmonrun.runtime.streaming.block_encoder import FRAME, LOOK_AHEAD
from salmonrun.runtime.streaming.clock import UpdateClock
from salmonrun.runtime.streaming.config import StreamConfig
from salmonrun.runtime.streaming.endpoint import Endpointer
from salmonrun.runtime.streaming.pcm import PcmInput
from salmonrun.runtime.streaming.transcript import Transcript
from salmonrun.runtime.streaming.utterance import Utterance
from salmonrun.runtime.terms import LIVE
from salmonrun.runtime.vad import VAD_HOP, Vad


@dataclass(frozen=True)
class Update:
    """What is known at one point of the audio."""

    stable: str  # all text that will not change; it only grows
    delta: str  # what this update added to it
    partial: str  # what follows it for now; the next update may say something else
    audio_s: float  # how much of the stream was heard
    latency_s: float  # from its last sample being looked at to this update
    lag_s: float  # how far the stream is behind real time; 0 while it keeps up
    left_out: int = 0  # updates that this one stands for, because the stream had fallen behind
    segment: Segment | None = None  # the utterance that ends with this update


class Stream:
    """One audio stream with its own state; see `Engine.stream`. Its methods may be called from several threads."""

    def __init__(
        self,
        model: Model,
        request: Request,
        config: StreamConfig,
        sample_rate: int,
        vad: Vad | None,
    ) -> None:
        _check(request)
        if config.reject:
            model.threshold()  # refuses, if there is none
        self._model = model
        self._request = request
        self._config = config
        self._block = config.block(model.bundle.manifest.streaming)
        interval = _interval(config, self._block.size if self._block else None)
        self._clock = UpdateClock(interval, LOOK_AHEAD if self._block else 0, config.max_lag_s)
        self._vad_name = vad.name if vad else "none"
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._input = PcmInput(sample_rate)
        self._endpointer = Endpointer(config.endpoint, vad.open() if vad else None)
        self._transcript = Transcript(model.tokenizer, request.stop.cuts)
        self._buffer = np.empty(round(model.bundle.manifest.audio.max_s * SAMPLE_RATE), np.float32)  # for an utterance
        if self._endpointer.margin + VAD_HOP > len(self._buffer):
            longest_s = len(self._buffer) / SAMPLE_RATE
            raise ConfigError(
                f"endpoint.margin_s is {self._endpointer.margin / SAMPLE_RATE:g}; this model hears {longest_s:g} s at "
                "once: lower it"
            )
        self._utterance: Utterance | None = None
        self._news = False  # whether there was speech since the last update
        self._segments: list[Segment] = []
        self._answers: list[Hypothesis] = []  # of these segments
        self._rejected = 0  # of them
        self._last: F32 | None = None  # audio of the utterance before
        self._result: Result | None = None
        self._lease = model.rounds.open(1, model.positions(request, len(self._buffer)), LIVE, stays=True)

    def __reduce_ex__(self, _: SupportsIndex) -> NoReturn:
        raise SharingError("a Stream can be neither pickled nor copied: each has one speaker; open another for another")

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def policy(self) -> str:
        """How it is heard: "block" or "agreement"."""
        return "block" if self._block else "agreement"

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The utterances that are over."""
        return tuple(self._segments)

    @property
    def speaking_since(self) -> int | None:
        """First sample, at 16 kHz, of the utterance that is going on; None: there is none."""
        return self._clock.samples - self._utterance.length if self._utterance else None

    def push(self, pcm: npt.NDArray[Any]) -> list[Update]:
        """Hear more audio. However it is cut into pieces, updates come at the same points of it and say the same.

        Args:
            pcm: [N], of any length, float (full scale 1.0) or int16, at the stream's rate.

        Raises:
            AudioError: not such an array, or not finite.
            ClosedError: the stream is finished or closed.
        """
        with self._lock:
            self._check_open()
            self._clock.pushed(self._input.add(pcm))
            return self._take_hops()

    def finish(self) -> Result:
        """The end of the audio: all becomes stable. Called again, it gives the same result."""
        with self._lock:
            if self._result is None:
                self._check_open()
                started = time.perf_counter()
                self._input.finish()
                self._take_hops()
                self._take_rest()
                self._result = self._make_result(started)
                self._release()
            return self._result

    def ask(
        self,
        prompt: str | None = None,
        *,
        task: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
    ) -> Result:
        """Answer another prompt about the utterance so far, or else the one before; the stream goes on undisturbed.

        Raises:
            AudioError: nothing has been heard yet.
            ClosedError: the stream is finished, cancelled or closed.
            PromptError: no such task, or not exactly one of task and prompt.
        """
        self._model.request(task, prompt, question, config)  # refused before the stream's turn is waited for
        with self._lock:
            self._check_open()
            if self._cancelled.is_set():
                raise ClosedError("this stream is cancelled; open another with engine.stream(...)")
            if self._utterance:
                return self._utterance.ask(self._input.waiting, prompt, task, question, config)
            if self._last is None:
                raise AudioError(f"no speech has been heard yet (vad {self._vad_name}); there is nothing to ask about")
            with listen(self._model, self._model.load_audio(self._last, SAMPLE_RATE), LIVE) as heard:
                return drain(heard.asked(LIVE, prompt, task, question, config))

    def cancel(self) -> None:
        """Stop, from any thread: at once, or within one token; `finish` then says "cancelled"."""
        self._cancelled.set()
        if self._lock.acquire(blocking=False):
            try:
                self._lease.close()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Give the memory back. A stream that is not finished loses what is not stable yet."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        self._utterance = None
        self._lease.close()

    def _check_open(self) -> None:
        if self._result is not None:
            raise ClosedError("this stream is finished; open another with engine.stream(...)")
        if self._lease.closed and not self._cancelled.is_set():
            raise ClosedError("this stream is closed: use it inside its `with` block, or open another")

    def _take_hops(self) -> list[Update]:
        hops = list(self._input.hops())
        updates = []
        for index, hop in enumerate(hops):
            if self._cancelled.is_set():
                break
            self._clock.samples += len(hop)
            waiting = (len(hops) - index - 1) * len(hop)
            if update := self._take(hop, waiting):
                updates.append(update)
        if self._cancelled.is_set():  # who cancelled had no lock to do it
            self._lease.close()
        return updates

    def _take(self, hop: F32, waiting: int) -> Update | None:
        """One hop; `waiting` samples are there behind it."""
        started = time.perf_counter()
        speech = self._endpointer.hear(hop)
        if self._utterance is None:
            if not speech:
                self._endpointer.keep(hop)
                return None
            self._utterance = self._begin()
        utterance = self._utterance
        utterance.append(hop)
        self._news |= speech
        over = self._endpointer.over(utterance.length, bool(utterance.tokens))
        if over or utterance.room < len(hop):
            return self._end(utterance, started, cut=not over)
        utterance.encode_block()
        if not self._clock.due(utterance.length) or not self._news or self._clock.leaves_out(waiting):
            return None
        return self._update(utterance, started)

    def _take_rest(self) -> None:
        """What does not fill a hop, and then the end of the utterance."""
        rest = self._input.rest()
        self._clock.samples += len(rest)
        if self._cancelled.is_set():
            return
        if self._utterance is None and self._config.endpoint is None and len(rest):
            self._utterance = self._begin()
        if self._utterance:
            self._utterance.append(rest)
            self._end(self._utterance, time.perf_counter(), cut=False)

    def _begin(self) -> Utterance:
        """An utterance that begins with what was kept from before the first speech."""
        agreement = LocalAgreement(self._config.hypotheses, self._config.hold_back)
        (slot,) = self._lease.slots
        utterance = Utterance(
            model=self._model,
            slot=slot,
            buffer=self._buffer,
            request=self._request,
            block=self._block,
            agreement=agreement,
            reject=self._config.reject,
            cancelled=self._cancelled,
        )
        self._clock.begin_utterance()
        kept = self._endpointer.take_kept()
        for hop in kept[max(0, len(kept) + 1 - len(self._buffer) // VAD_HOP) :]:  # and there is room for one more
            utterance.append(hop)
        return utterance

    def _update(self, utterance: Utterance, started: float) -> Update:
        delta = self._transcript.add(utterance.update())
        self._news = False
        return self._make_update(started, delta, self._transcript.partial(utterance.tokens))

    def _end(self, utterance: Utterance, started: float, cut: bool) -> Update:
        """The utterance is over: at its margin behind the last speech, or, `cut`, where the window is full."""
        end = utterance.length - (0 if cut else max(0, self._endpointer.silent - self._endpointer.behind))
        heard = utterance.end(end)
        answer = utterance.finish(heard)
        tokens = self._request.stop.without_stop(answer.tokens)
        pcm, left = utterance.pcm[:heard].copy(), utterance.pcm[end:].copy()
        silence, dropped = utterance.silence(pcm), utterance.dropped() if answer.tokens else ""
        notes = [note for note in (repeated(tokens), silence, dropped) if note]
        if cut:
            notes.append(f"cut at {end / SAMPLE_RATE:.2f} s, the longest this model hears at once")
        delta, text = self._transcript.end_utterance(utterance.certain if dropped else tokens)
        for start in range(0, len(left), VAD_HOP):  # the next utterance may begin at once
            self._endpointer.keep(left[start : start + VAD_HOP])
        first = self._clock.samples - utterance.length
        segment = Segment(
            text=text,
            token_ids=tokens,
            start_sample=first,
            end_sample=first + end,
            window=(first, first + heard),
            finish_reason=answer.finish_reason,
            notes=tuple(notes),
            score=answer.score,
            low_confidence=self._model.low_confidence(answer.score),
        )
        self._segments.append(segment)
        self._answers.append(answer)
        self._rejected += dropped.startswith("rejected")
        self._utterance, self._last, self._news = None, pcm, False
        return self._make_update(started, delta, "", segment)

    def _make_update(self, started: float, delta: str, partial: str, segment: Segment | None = None) -> Update:
        return Update(
            stable=self._transcript.stable,
            delta=delta,
            partial=partial,
            audio_s=self._clock.audio_s,
            latency_s=time.perf_counter() - started,
            lag_s=self._clock.lag_s,
            left_out=self._clock.take_left_out(),
            segment=segment,
        )

    def _make_result(self, started: float) -> Result:
        reason: FinishReason = self._segments[-1].finish_reason if self._segments else "stop"
        if self._cancelled.is_set():
            reason = "cancelled"
        answers = list(self._answers)
        if cut := self._utterance:  # by a cancellation
            answers.append(Hypothesis(cut.certain, "cancelled", cut.certain_logprobs))
        tokens = [self._request.stop.without_stop(answer.tokens) for answer in answers]
        logprobs = [answer.logprobs[: len(own)] for answer, own in zip(answers, tokens, strict=True)]
        score = mean([logprob for answer in answers for logprob in answer.logprobs])
        return Result(
            text=self._transcript.stable,
            token_ids=[token for own in tokens for token in own],
            finish_reason=reason,
            timings=Timings(
                self._clock.audio_s, {"finish": time.perf_counter() - started}, tokens=sum(map(len, tokens))
            ),
            notes=tuple(self._notes()),
            token_logprobs=[logprob for own in logprobs for logprob in own],
            score=score,
            low_confidence=self._model.low_confidence(score),
        )

    def _notes(self) -> list[str]:
        notes = [f"{s.start:.2f} s: {note}" for s in self._segments for note in s.notes]
        if self._rejected:
            threshold = self._model.threshold().score
            notes.append(f"{self._rejected} of {len(self._segments)} utterances rejected: score below {threshold:.2f}")
        if self._cancelled.is_set():
            return notes
        if not self._segments:
            return [f"no speech in {self._clock.audio_s:.1f} s (vad {self._vad_name}), so nothing was decoded"]
        dropped = self._clock.samples - sum(s.end_sample - s.start_sample for s in self._segments)
        if dropped > 0:
            notes.append(f"{dropped / SAMPLE_RATE:.1f} s without speech (vad {self._vad_name}) were not decoded")
        return notes


def _check(request: Request) -> None:
    """Refuse what a stream cannot do.

    Raises:
        ConfigError: not greedy, or with stop strings.
        PromptError: nothing follows the audio.
    """
    config = request.config
    if config.num_beams > 1 or config.do_sample or config.stop_strings:
        raise ConfigError("a stream decodes greedily, without stop_strings; leave out num_beams and do_sample")
    if not request.prompt.after:
        raise PromptError("nothing follows the audio in this prompt; write the instruction of a stream behind it")


def _interval(config: StreamConfig, block: int | None) -> int:
    """Samples between updates: with blocks, as many whole ones as it takes."""
    samples = max(1, round(config.update_s * SAMPLE_RATE))
    return samples if block is None else -(-samples // (block * FRAME)) * block * FRAME
