"""One prompt about several windows at once."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from salmonrun.runtime.answer import choose_search
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.audio import SAMPLE_RATE, Audio
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.log import LOGGER
from salmonrun.runtime.longform.windows import Window
from salmonrun.runtime.model import Model
from salmonrun.runtime.request import Request
from salmonrun.runtime.search import Hypothesis


@dataclass(frozen=True)
class WindowAnswer:
    """An answer about one window."""

    window: Window
    hypothesis: Hypothesis
    notes: tuple[str, ...]


class BatchAnswerer:
    """Asks one prompt about many windows, together. Answers are, token for token, those of `Engine.generate`."""

    def __init__(self, model: Model, request: Request, cancel: threading.Event | None) -> None:
        self.model = model
        self.request = request
        self._cancel = cancel or threading.Event()

    def answer(self, windows: Sequence[Window]) -> list[WindowAnswer]:
        """One answer for each window; those that a cancellation met have what was decoded until then."""
        started = time.perf_counter()
        recordings = [self.model.load_audio(window.pcm, SAMPLE_RATE) for window in windows]
        silences = [self.model.silence(audio) for audio in recordings]
        hypotheses = self._decode([audio for audio, note in zip(recordings, silences, strict=True) if not note])
        seconds, tokens = sum(audio.source_s for audio in recordings), sum(len(one.tokens) for one in hypotheses)
        took_ms = 1000 * (time.perf_counter() - started)
        LOGGER.debug("%d windows, %.1f s of audio: %d tokens; ms: %.1f", len(windows), seconds, tokens, took_ms)
        decoded = iter(hypotheses)
        return [
            WindowAnswer(window, Hypothesis([], "stop", []), (*audio.notes, note))
            if note
            else WindowAnswer(window, next(decoded), audio.notes)
            for window, audio, note in zip(windows, recordings, silences, strict=True)
        ]

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of an answer's tokens, cut before the first stop string."""
        text = self.model.tokenizer.decode(token_ids)
        return text[: min((at for string in self.request.stop.strings if (at := text.find(string)) >= 0), default=None)]

    def _decode(self, recordings: Sequence[Audio]) -> list[Hypothesis]:
        if not recordings:
            return []
        prompts: list[F32] = []
        for audio in recordings:
            if self._cancel.is_set():
                return [Hypothesis([], "cancelled", [])] * len(recordings)
            prompts.append(self.model.inputs_embeds(self.request.prompt, self.model.encoder.encode(audio)))
        config = self.request.config
        longest = max(map(len, prompts)) + config.max_new_tokens
        with self.model.decoder.open(len(prompts) * config.num_beams, longest) as slots:
            searches = []
            for first, embeds in zip(range(0, len(slots), config.num_beams), prompts, strict=True):
                own = slots[first : first + config.num_beams]
                searches.append(choose_search(self.request, Chunk(own[0], embeds), own, len(embeds)))
            return self.model.rounds.run(searches, self._cancel)
