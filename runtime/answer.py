"""From a prompt's embeddings to text: prefill, search, detokenize, measure."""

import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.decoder import F32, Decoder
from salmonrun.runtime.search import FinishReason, StopRules, beam_search, decode_one_by_one
from salmonrun.runtime.stopwatch import Stopwatch
from salmonrun.runtime.tokenizer import StreamingDetokenizer, Tokenizer

S = TypeVar("S")


@dataclass(frozen=True)
class Answer:
    """What the LLM said, and when."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    token_at: list[float]  # time.perf_counter() of each token; with beams of the end of the prefill and of the answer


def answer(
    decoder: Decoder[S],
    tokenizer: Tokenizer,
    slots: list[S],
    inputs_embeds: F32,
    config: GenerationConfig,
    stop_ids: tuple[int, ...],
    watch: Stopwatch,
    cancel: threading.Event | None = None,
) -> Generator[str, None, Answer]:
    """Append inputs_embeds [P, dim] to the first of num_beams slots and decode; yields text as it becomes certain."""
    stop = StopRules(frozenset(stop_ids), config.stop_strings, tokenizer.decode)
    cancelled = (cancel or threading.Event()).is_set
    logits = decoder.prefill(slots[0], inputs_embeds)
    watch.lap("prefill")
    text = _GrowingText(tokenizer, config.stop_strings)
    token_ids: list[int] = []
    token_at: list[float] = []
    if config.num_beams > 1:
        token_at.append(time.perf_counter())
        token_ids, reason = beam_search(decoder, slots, logits, config, stop, cancelled)
        token_at.append(time.perf_counter())
        yield from filter(None, map(text.add, token_ids))
    else:
        search = decode_one_by_one(decoder, slots[0], logits, config, stop, cancelled)
        while True:
            try:
                token_ids.append(next(search))
            except StopIteration as end:
                reason = end.value
                break
            token_at.append(time.perf_counter())
            if piece := text.add(token_ids[-1]):
                yield piece
    if piece := text.finish():
        yield piece
    watch.lap("decode")
    return Answer(text.emitted, token_ids, reason, token_at)


class _GrowingText:
    """Text that is handed out piece by piece and cut before the first stop string."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: tuple[str, ...]) -> None:
        self._detokenizer = StreamingDetokenizer(tokenizer)
        self._stop_strings = stop_strings
        self._held = ""  # may still turn out to begin a stop string
        self._stopped = False
        self.emitted = ""

    def add(self, token_id: int) -> str:
        """The text that became certain with this token."""
        return self._emit(self._detokenizer.add(token_id), final=False)

    def finish(self) -> str:
        """What was held back."""
        return self._emit(self._detokenizer.finish(), final=True)

    def _emit(self, piece: str, final: bool) -> str:
        if self._stopped:
            return ""
        self._held += piece
        cuts = [at for string in self._stop_strings if (at := self._held.find(string)) >= 0]
        if cuts:
            self._stopped = True
            certain = self._held[: min(cuts)]
        else:
            certain = self._held if final else self._held[: len(self._held) - self._uncertain()]
        self._held = self._held[len(certain) :]
        self.emitted += certain
        return certain

    def _uncertain(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(string) for string in self._stop_strings), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(string.startswith(self._held[-length:]) for string in self._stop_strings):
                return length
        return 0
