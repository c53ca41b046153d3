"""The text of a transcript while it is decoded: what is told of it adds up to the text of its segments."""

from collections.abc import Callable

from salmonrun.runtime.answer import GrowingText
from salmonrun.runtime.segment import BETWEEN_UTTERANCES, Segment


class ToldText:
    """Grows piece by piece: all segments' texts without the spaces around them, and `BETWEEN_UTTERANCES` between.

    Args:
        begin: makes the text of an answer's tokens.
    """

    def __init__(self, begin: Callable[[], GrowingText]) -> None:
        self._begin = begin
        self._any = False  # whether something was told of the segments before
        self._growing = begin()
        self._told = ""  # of this segment, without the space before it
        self._held = ""  # space behind that, which is text only if more follows

    def token(self, token_id: int) -> str:
        """What is to be told with one more token of a segment that will keep all of them."""
        return self._grow(self._growing.add(token_id))

    def segment(self, segment: Segment) -> str:
        """What is to be told with the end of the segment; the next one begins."""
        rest = segment.text.strip()[len(self._told) :]
        piece = self._parted(rest)
        self._told += rest
        self.next()
        return piece

    def next(self) -> None:
        """There is no segment of this answer, or no more of it: the next one begins."""
        self._any |= self._told != ""
        self._growing, self._told, self._held = self._begin(), "", ""

    def _grow(self, text: str) -> str:
        text = self._held + text if self._told else text.lstrip()
        certain = text.rstrip()
        self._held = text[len(certain) :] if self._told or certain else ""
        piece = self._parted(certain)
        self._told += certain
        return piece

    def _parted(self, text: str) -> str:
        return BETWEEN_UTTERANCES + text if text and self._any and not self._told else text
