"""The text of a stream: what is stable, utterance after utterance."""

from collections.abc import Sequence

from salmonrun.runtime.cut_text import CutText, cut_text
from salmonrun.runtime.segment import BETWEEN_UTTERANCES
from salmonrun.runtime.tokenizer import StreamingDetokenizer, Tokenizer


class Transcript:
    """Grows token by token; nothing in it is ever taken back. Each answer is cut before the first of some strings."""

    def __init__(self, tokenizer: Tokenizer, cuts: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._cuts = cuts
        self.stable = ""
        self._begin()

    def add(self, tokens: Sequence[int]) -> str:
        """Further certain tokens of the utterance; the text they add."""
        return self._grow(self._cut.add("".join(map(self._detokenizer.add, tokens))), len(tokens))

    def partial(self, tokens: Sequence[int]) -> str:
        """The text of an utterance's answer behind what is stable of it."""
        return self._parted(cut_text(self._tokenizer.decode(tokens), self._cuts)[len(self._said) :])

    def end_utterance(self, tokens: Sequence[int]) -> tuple[str, str]:
        """All its tokens, which begin with those added so far: the text they add, and the utterance's text."""
        added = self.add(tokens[self._count :]) + self._grow(self._cut.add(self._detokenizer.finish(), final=True), 0)
        text = self._said
        self._begin()
        return added, text

    def _begin(self) -> None:
        self._detokenizer = StreamingDetokenizer(self._tokenizer)
        self._cut = CutText(self._cuts)
        self._count = 0
        self._said = ""  # of the utterance

    def _grow(self, text: str, count: int) -> str:
        self._count += count
        delta = self._parted(text)
        self._said += text
        self.stable += delta
        return delta

    def _parted(self, text: str) -> str:
        """The next text of the utterance, and what parts it from the one before."""
        return BETWEEN_UTTERANCES + text if text and self.stable and not self._said else text
