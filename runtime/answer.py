"""From a prompt's embeddings to text: search, detokenize, measure."""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from salmonrun.runtime.beam_search import beam_search
from salmonrun.runtime.config import PromptConfig
from salmonrun.runtime.cut_text import CutText
from salmonrun.runtime.decoder import Chunk, Lease
from salmonrun.runtime.model import Model
from salmonrun.runtime.request import Request
from salmonrun.runtime.search import FinishReason, Search, decode
from salmonrun.runtime.stopwatch import Stopwatch
from salmonrun.runtime.terms import Terms
from salmonrun.runtime.tokenizer import StreamingDetokenizer, Tokenizer


@dataclass(frozen=True)
class Answer:
    """What the LLM answers, and when."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    heard_nothing: bool  # whether the text is empty because it said that there is nothing to be transcribed
    logprobs: list[float]  # of each token, see `Hypothesis`
    score: float | None  # their mean
    token_at: list[float]  # time.perf_counter() of each token; with beams of the end of the prefill and of the answer


def choose_search(request: Request, prompt: Chunk[Any], slots: Sequence[Any], start: int) -> Search[Any]:
    """The search a request asks for.

    Args:
        request: how tokens are chosen.
        prompt: for the first of the slots.
        slots: as many as there are beams.
        start: positions of the slot in front of the answer.
    """
    if request.config.num_beams > 1:
        return beam_search(prompt, slots, start, request.config, request.stop)
    return decode(prompt, request.config, request.stop)


def answer(
    model: Model, request: Request, search: Search[Any], watch: Stopwatch, terms: Terms, lease: Lease[Any]
) -> Generator[str, None, Answer]:
    """Decode; yields text as it becomes certain. The search's slots are given back when it has ended."""
    text = GrowingText(model.tokenizer, request.stop.cuts, model.bundle.manifest.prompt)
    tokens = model.rounds.tokens(search, terms, lease)
    while True:
        try:
            piece = text.add(next(tokens))
        except StopIteration as end:
            running = end.value
            break
        if piece:
            yield piece
    if piece := text.finish():
        yield piece
    ended = time.perf_counter()
    watch.lap("prefill", running.prefilled_at)
    watch.lap("decode", ended)
    found = running.result()
    token_at = [running.prefilled_at, ended] if request.config.num_beams > 1 else running.token_at
    return Answer(
        text=text.emitted,
        token_ids=found.tokens,
        finish_reason=found.finish_reason,
        heard_nothing=text.heard_nothing,
        logprobs=found.logprobs,
        score=found.score,
        token_at=token_at,
    )


class GrowingText:
    """Text that is handed out piece by piece and cut before the first of some strings; none if it says "nothing"."""

    def __init__(self, tokenizer: Tokenizer, cuts: tuple[str, ...], prompt: PromptConfig) -> None:
        self._prompt = prompt
        self._detokenizer = StreamingDetokenizer(tokenizer)
        self._text = CutText(cuts)
        self._unsaid = ""  # may still turn out to say that there is nothing to be transcribed
        self.emitted = ""
        self.heard_nothing = False

    def add(self, token_id: int) -> str:
        """The text that became certain with this token."""
        return self._emit(self._text.add(self._detokenizer.add(token_id)), final=False)

    def finish(self) -> str:
        """What was held back."""
        return self._emit(self._text.add(self._detokenizer.finish(), final=True), final=True)

    def _emit(self, certain: str, final: bool) -> str:
        self._unsaid += certain
        if not self.emitted and not final and self._prompt.may_say_nothing(self._unsaid):
            return ""
        self.heard_nothing = not self.emitted and final and self._prompt.says_nothing(self._unsaid)
        said, self._unsaid = "" if self.heard_nothing else self._unsaid, ""
        self.emitted += said
        return said
