"""Two answers about windows that overlap become one: aligned by the longest run of tokens that both have."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from salmonrun.runtime.tokenizer import Tokenizer

LEAST_SHARE = 0.25  # of the tokens expected in the overlap: a shorter common run is taken for chance
LEAST_TOKENS = 2
SLACK = 2  # the overlap may have this many times the tokens expected


@dataclass(frozen=True)
class Run:
    """Tokens that both answers have."""

    previous: int  # where it begins in the previous answer
    following: int  # where it begins in the following one
    length: int


def common_run(previous: Sequence[int], following: Sequence[int], expected: float) -> Run | None:
    """The longest run of tokens that the end of one answer and the beginning of the next have in common.

    Args:
        previous: tokens about the window before, no stop token.
        following: tokens about the window after, no stop token.
        expected: tokens that the overlap has, at the rate these answers have otherwise. Runs are looked for within
            twice this many from the seam; of equally long ones that is taken whose overlap is closest to it.

    Returns:
        None if the longest is shorter than a quarter of `expected` or two tokens.
    """
    reach = math.ceil(SLACK * expected) + LEAST_TOKENS
    first, end = max(0, len(previous) - reach), min(len(following), reach)
    runs: list[Run] = []
    ending = [0] * (end + 1)  # lengths of the runs that end with the token before and following[j - 1]
    for i in range(first, len(previous)):
        lengths = [0] * (end + 1)
        for j in range(end):
            if previous[i] == following[j]:
                length = lengths[j + 1] = ending[j] + 1
                runs.append(Run(i + 1 - length, j + 1 - length, length))
        ending = lengths
    least = max(LEAST_TOKENS, math.ceil(LEAST_SHARE * expected))

    def quality(run: Run) -> tuple[int, float]:
        overlap = len(previous) - run.previous + run.following
        return run.length, -abs(overlap - expected)

    best = max(runs, key=quality, default=None)
    return best if best and best.length >= least else None


def seam(tokenizer: Tokenizer, following: Sequence[int], run: Run) -> int:
    """How many tokens of the run the previous answer keeps: up to the word boundary nearest to the run's middle.

    Without a boundary, all of them.
    """
    texts = [tokenizer.decode(following[: run.following + k]) for k in range(run.length + 2)]
    boundaries = [k for k in range(run.length + 1) if texts[k + 1][len(texts[k]) :][:1].isspace()]
    return min(boundaries, key=lambda k: abs(2 * k - run.length), default=run.length)
