"""Text that ends in front of the first of some strings, whole or while it grows."""

from collections.abc import Sequence


def cut_text(text: str, strings: Sequence[str]) -> str:
    """The text in front of the first of the strings; all of it where it has none."""
    return text[: min((at for string in strings if (at := text.find(string)) >= 0), default=None)]


class CutText:
    """The same, piece by piece: what may still turn out to begin a string is held back."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self._ended = False

    def add(self, piece: str, final: bool = False) -> str:
        """The text that is certain with this piece; with the `final` one all that is left."""
        if self._ended:
            return ""
        self._held += piece
        certain = cut_text(self._held, self._strings)
        self._ended = len(certain) < len(self._held)
        if not self._ended and not final:
            certain = certain[: len(certain) - self._uncertain()]
        self._held = self._held[len(certain) :]
        return certain

    def _uncertain(self) -> int:
        """Length of the longest end of the held text that begins a string."""
        longest = max(map(len, self._strings), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(string.startswith(self._held[-length:]) for string in self._strings):
                return length
        return 0
