"""One prompt about several windows at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from salmonrun.runtime.answer import choose_search
from salmonrun.runtime.audio import SAMPLE_RATE, Audio
from salmonrun.runtime.cut_text import cut_text
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.log import LOGGER, stages_ms
from salmonrun.runtime.longform.windows import Window
from salmonrun.runtime.model import Model
from salmonrun.runtime.request import Request
from salmonrun.runtime.search import Hypothesis
from salmonrun.runtime.stopwatch import Stopwatch
from salmonrun.runtime.terms import CancelledEarlyError, Terms


@dataclass(frozen=True)
class WindowAnswer:
    """An answer about one window."""

    window: Window
    hypothesis: Hypothesis
    notes: tuple[str, ...]


class BatchAnswerer:
    """Asks one prompt about many windows, together. Answers are, token for token, those of `Engine.generate`."""

    def __init__(self, model: Model, request: Request, terms: Terms) -> None:
        self.model = model
        self.request = request
        self.terms = terms
        self._watch = Stopwatch()

    def answer(self, windows: Sequence[Window]) -> Iterator[int | WindowAnswer]:
        """One answer for each window, behind its tokens as they come; one that a cancellation met has those alone."""
        self._watch.stages, tokens = {}, 0  # audio: what was read since the windows before
        recordings = [self.model.load_audio(window.pcm, SAMPLE_RATE) for window in windows]
        self._watch.lap("audio")
        silences = [self.model.silence(audio) for audio in recordings]
        decoded = self._decode([audio for audio, note in zip(recordings, silences, strict=True) if not note])
        for window, audio, note in zip(windows, recordings, silences, strict=True):
            if note:
                yield WindowAnswer(window, Hypothesis([], "stop", []), (*audio.notes, note))
                continue
            for item in decoded:
                if isinstance(item, Hypothesis):
                    tokens += len(item.tokens)
                    yield WindowAnswer(window, item, audio.notes)
                    break
                yield item
        self._watch.lap("decode")
        seconds, spent = sum(audio.source_s for audio in recordings), stages_ms(self._watch.stages)
        LOGGER.debug("%d windows, %.1f s of audio: %d tokens; ms: %s", len(windows), seconds, tokens, spent)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of an answer's tokens, cut before the first string that ends it."""
        return cut_text(self.model.tokenizer.decode(token_ids), self.request.stop.cuts)

    def _decode(self, recordings: Sequence[Audio]) -> Iterator[int | Hypothesis]:
        """The tokens of each recording's answer, and the answer; all of them are decoded meanwhile."""
        if not recordings:
            return
        model, request, config = self.model, self.request, self.request.config
        try:
            prompts = [
                model.inputs_embeds(request.prompt, model.encode(audio, self.terms, self._watch))
                for audio in recordings
            ]
            longest = max(map(len, prompts)) + config.max_new_tokens
            lease = model.rounds.open(len(prompts) * config.num_beams, longest, self.terms)
        except CancelledEarlyError:
            yield from [Hypothesis([], "cancelled", [])] * len(recordings)
            return
        with lease as slots:
            searches = []
            for first, embeds in zip(range(0, len(slots), config.num_beams), prompts, strict=True):
                own = slots[first : first + config.num_beams]
                searches.append(choose_search(request, Chunk(own[0], embeds), own, len(embeds)))
            with model.rounds.entered(searches, self.terms, lease) as all_running:
                for running in all_running:
                    yield from model.rounds.follow(running)
                    yield running.result()
