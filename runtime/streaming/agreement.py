"""Which part of a growing answer is certain: what several hypotheses in a row agree on."""

from collections import deque
from collections.abc import Sequence


class LocalAgreement:
    """LocalAgreement-n (Liu et al. 2020; Machacek et al. 2023, Whisper-Streaming), on tokens.

    Args:
        hypotheses: how many in a row must agree.
        hold_back: so many tokens at the end of what they agree on are not certain yet: a word that is only half heard
            is often completed to the wrong one, and more than once.
    """

    def __init__(self, hypotheses: int, hold_back: int) -> None:
        self._recent: deque[list[int]] = deque(maxlen=hypotheses)
        self._hypotheses = hypotheses
        self._hold_back = hold_back
        self.certain: list[int] = []

    def add(self, tokens: Sequence[int]) -> list[int]:
        """The tokens that become certain with this hypothesis, which begins with all that were certain before.

        Raises:
            ValueError: it does not.
        """
        if list(tokens[: len(self.certain)]) != self.certain:
            raise ValueError(f"a hypothesis must begin with what is certain: {self.certain}")
        self._recent.append(list(tokens))
        if len(self._recent) < self._hypotheses:
            return []
        agreed = _common_prefix(self._recent)
        new = list(tokens[len(self.certain) : max(len(self.certain), agreed - self._hold_back)])
        self.certain += new
        return new


def _common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with."""
    count = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count
