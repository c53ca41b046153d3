"""A recording that was encoded once and is asked about many times."""

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import numpy as np

from salmonrun.runtime.answer import answer
from salmonrun.runtime.audio import Audio
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.decoder import F32
from salmonrun.runtime.decoders.kv_cache import Slot
from salmonrun.runtime.errors import ClosedError
from salmonrun.runtime.model import Model
from salmonrun.runtime.prompt import SPEECH_MARK, PromptIds
from salmonrun.runtime.result import Result, drain, empty_result, make_result
from salmonrun.runtime.stopwatch import Stopwatch


@contextmanager
def listen(model: Model, audio: Audio) -> Iterator["Heard"]:
    """Encode a recording once and keep its KV until the context ends."""
    embeds = model.encoder.encode(audio)
    opening = model.prompt_ids(None, SPEECH_MARK, None).before  # as in every prompt with nothing before the audio
    with model.decoder.open(1, len(opening) + len(embeds)) as (slot,):
        model.decoder.prefill(slot, np.concatenate([model.decoder.embed(opening), embeds]))
        yield Heard(model, audio, embeds, opening, slot)


class Heard:
    """A recording that was encoded once. Ask as often as you like, from several threads if you like."""

    def __init__(self, model: Model, audio: Audio, embeds: F32, opening: tuple[int, ...], slot: Slot) -> None:
        self._model = model
        self._audio = audio
        self._embeds = embeds  # [N, dim of the LLM]
        self._opening = opening  # ids before the audio that the slot has
        self._slot = slot  # KV of opening and audio

    def ask(
        self,
        prompt: str | None = None,
        *,
        task: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
        cancel: threading.Event | None = None,
    ) -> Result:
        """Answer a prompt about the recording, as `Engine.generate` would; only the prompt's text is computed."""
        return drain(self.ask_iter(prompt, task=task, question=question, config=config, cancel=cancel))

    def ask_iter(
        self,
        prompt: str | None = None,
        *,
        task: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
        cancel: threading.Event | None = None,
    ) -> Generator[str, None, Result]:
        """Like `ask`, but yields pieces of text as they are decoded. Bad input is refused here."""
        watch = Stopwatch()
        self._check_open()
        config = self._model.check(config or GenerationConfig())
        return self._answer(self._model.prompt_ids(task, prompt, question), config, cancel, watch)

    def _check_open(self) -> None:
        if self._slot.cache.released:
            raise ClosedError("this recording is closed: ask inside the `with engine.listen(...)` block")

    def _answer(
        self, ids: PromptIds, config: GenerationConfig, cancel: threading.Event | None, watch: Stopwatch
    ) -> Generator[str, None, Result]:
        model, decoder = self._model, self._model.decoder
        self._check_open()
        if note := model.silence(self._audio):
            return empty_result(self._audio, "stop", note, watch)
        shared = ids.before == self._opening
        embeds = decoder.embed(ids.after)
        if not shared:  # text in front of the audio: its KV cannot be reused, its embeddings can
            embeds = np.concatenate([decoder.embed(ids.before), self._embeds, embeds])
        kept = self._slot.length if shared else 0
        with decoder.open(config.num_beams, kept + len(embeds) + config.max_new_tokens) as slots:
            decoder.fork(self._slot, slots[0], kept)
            stops = model.stop_ids(config)
            watch.lap("prompt")
            said = yield from answer(decoder, model.tokenizer, slots, embeds, config, stops, watch, cancel)
        return make_result(said, self._audio, watch)
