"""A recording that was encoded once and is asked about many times."""

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, SupportsIndex

import numpy as np

from salmonrun.runtime.answer import answer, choose_search
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.audio import Audio
from salmonrun.runtime.checks import checked
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.decoder import Chunk, Lease
from salmonrun.runtime.errors import ClosedError, SharingError
from salmonrun.runtime.model import Model
from salmonrun.runtime.prompt import SPEECH_MARK
from salmonrun.runtime.request import Request
from salmonrun.runtime.result import Result, Timings, drain, empty_result, make_result
from salmonrun.runtime.stopwatch import Stopwatch
from salmonrun.runtime.terms import NORMAL, WHENEVER, CancelledEarlyError, Terms


@contextmanager
def listen(model: Model, audio: Audio, terms: Terms = WHENEVER, watch: Stopwatch | None = None) -> Iterator["Heard"]:
    """Encode a recording once and keep its KV until the context ends; `watch` runs since before it was read."""
    watch = watch or Stopwatch()
    embeds = model.encode(audio, terms, watch)
    opening = model.request(prompt=SPEECH_MARK).prompt.before  # as in every prompt with nothing before the audio
    lease = model.rounds.open(1, len(opening) + len(embeds), terms, stays=True)
    with lease as (slot,):
        model.rounds.append(Chunk(slot, np.concatenate([model.decoder.embed(opening), embeds]), wanted=0), terms)
        watch.lap("prefill")
        yield Heard(model, audio, embeds, opening, lease, Timings(audio.source_s, watch.stages))


class Heard:
    """A recording that was encoded once. Ask as often as you like, from several threads if you like."""

    def __init__(
        self,
        model: Model,
        audio: Audio,
        embeds: F32,
        opening: tuple[int, ...],
        lease: Lease[Any],
        timings: Timings,
    ) -> None:
        self.timings = timings  # of hearing it, once: what no question takes again
        self._model = model
        self._audio = audio
        self._embeds = embeds  # [N, dim of the LLM]
        self._opening = opening  # ids before the audio that the slot has
        self._lease = lease  # a slot with the KV of opening and audio

    @checked()
    def ask(
        self,
        prompt: str | None = None,
        *,
        task: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
        cancel: threading.Event | None = None,
        priority: int = NORMAL,
        deadline_s: float | None = None,
    ) -> Result:
        """Answer a prompt about the recording, as `Engine.generate` would; only the prompt's text is computed."""
        terms = Terms.of(priority, deadline_s, cancel)
        return drain(self.asked(terms, prompt, task, question, config))

    @checked()
    def ask_iter(
        self,
        prompt: str | None = None,
        *,
        task: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
        cancel: threading.Event | None = None,
        priority: int = NORMAL,
        deadline_s: float | None = None,
    ) -> Generator[str, None, Result]:
        """Like `ask`, but yields pieces of text as they are decoded. Bad input is refused here."""
        return self.asked(Terms.of(priority, deadline_s, cancel), prompt, task, question, config)

    def asked(
        self,
        terms: Terms,
        prompt: str | None,
        task: str | None,
        question: str | None,
        config: GenerationConfig | None,
    ) -> Generator[str, None, Result]:
        """`ask_iter` on any terms, also those of a live stream."""
        watch = Stopwatch()
        self._check_open()
        return self._answer(self._model.request(task, prompt, question, config), terms, watch)

    def __reduce_ex__(self, _: SupportsIndex) -> NoReturn:
        raise SharingError("a Heard can be neither pickled nor copied: ask it from any thread while it is open")

    def _check_open(self) -> None:
        if self._lease.closed:
            raise ClosedError("this recording is closed: ask inside the `with engine.listen(...)` block")

    def _answer(self, request: Request, terms: Terms, watch: Stopwatch) -> Generator[str, None, Result]:
        model, decoder = self._model, self._model.decoder
        self._check_open()
        if note := model.silence(self._audio):
            return empty_result(self._audio, "stop", note, watch)
        shared = request.prompt.before == self._opening
        if shared:
            kept, embeds = len(self._opening) + len(self._embeds), decoder.embed(request.prompt.after)
        else:  # text in front of the audio: its KV cannot be reused, its embeddings can
            kept, embeds = 0, model.inputs_embeds(request.prompt, self._embeds)
        start = kept + len(embeds)
        try:
            lease = model.rounds.open(request.config.num_beams, start + request.config.max_new_tokens, terms)
        except CancelledEarlyError as early:
            return empty_result(self._audio, "cancelled", str(early), watch)
        with lease as slots:
            prompt = Chunk(slots[0], embeds, keep=kept, source=self._lease.slots[0])
            watch.lap("prompt")
            search = choose_search(request, prompt, slots, start)
            answered = yield from answer(model, request, search, watch, terms, lease)
        return make_result(model, answered, self._audio, watch)
