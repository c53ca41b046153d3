"""One prompt about several windows at once."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from salmonrun.runtime.audio import SAMPLE_RATE, Audio
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.decoder import F32
from salmonrun.runtime.longform.windows import Window
from salmonrun.runtime.model import Model
from salmonrun.runtime.prompt import PromptIds
from salmonrun.runtime.result import Result
from salmonrun.runtime.search import FinishReason, StopRules, decode_batch


@dataclass(frozen=True)
class Said:
    """An answer about one window."""

    token_ids: list[int]  # as generated, a final stop token included
    finish_reason: FinishReason
    notes: tuple[str, ...]


class BatchAnswerer:
    """Asks one prompt about many windows. Answers are, token for token, those of `Engine.generate`.

    Greedy answers are decoded together; with beams or sampling one after the other, by `alone`.
    """

    def __init__(
        self,
        model: Model,
        prompt: PromptIds,
        config: GenerationConfig,
        alone: Callable[[Audio], Result],
        cancel: threading.Event | None,
    ) -> None:
        self.model = model
        self.config = config
        self.stop_ids = model.stop_ids(config)
        self._prompt = prompt
        self._alone = alone
        self._cancelled = (cancel or threading.Event()).is_set

    def check_capacity(self, samples: int) -> None:
        """Refuse windows of so many samples.

        Raises:
            CapacityError: prompt and answer would not fit the KV cache.
        """
        self.model.decoder.check_capacity(self.model.positions(self._prompt, samples, self.config))

    def answer(self, windows: Sequence[Window]) -> list[Said]:
        """One answer for each window; those that a cancellation met have what was decoded until then."""
        heard = [self.model.load_audio(window.pcm, SAMPLE_RATE) for window in windows]
        if self.config.num_beams > 1 or self.config.do_sample:
            results = [self._alone(audio) for audio in heard]
            return [Said(result.token_ids, result.finish_reason, result.notes) for result in results]
        silences = [self.model.silence(audio) for audio in heard]
        answers = iter(self._decode([audio for audio, note in zip(heard, silences, strict=True) if not note]))
        return [
            Said([], "stop", (*audio.notes, note)) if note else Said(*next(answers), audio.notes)
            for audio, note in zip(heard, silences, strict=True)
        ]

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of an answer's tokens, cut before the first stop string."""
        text = self.model.tokenizer.decode(token_ids)
        return text[: min((at for string in self.config.stop_strings if (at := text.find(string)) >= 0), default=None)]

    def _decode(self, heard: Sequence[Audio]) -> list[tuple[list[int], FinishReason]]:
        """Encode and prefill one after the other, for the graphs of encoders take one; then decode together."""
        model = self.model
        stop = StopRules(frozenset(self.stop_ids), self.config.stop_strings, model.tokenizer.decode)
        longest = max((len(audio.pcm) for audio in heard), default=0)
        with model.decoder.open(len(heard), model.positions(self._prompt, longest, self.config)) as slots:
            logits: list[F32] = []
            for audio, slot in zip(heard, slots, strict=True):
                if self._cancelled():
                    return [([], "cancelled")] * len(heard)
                logits.append(model.decoder.prefill(slot, self._inputs_embeds(audio)))
            return decode_batch(model.decoder, slots, logits, self.config, stop, self._cancelled)

    def _inputs_embeds(self, audio: Audio) -> F32:
        embed = self.model.decoder.embed
        audio_embeds = self.model.encoder.encode(audio)
        return np.concatenate([embed(self._prompt.before), audio_embeds, embed(self._prompt.after)])
