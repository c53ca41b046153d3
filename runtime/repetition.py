"""Degenerate answers: a model that is lost says the same few tokens again and again."""

from collections.abc import Sequence

LONGEST_UNIT = 16  # tokens
LEAST_TIMES = 8  # digit strings and songs repeat themselves, but not so often
LEAST_TOKENS = 16


def ends_in_repetition(token_ids: Sequence[int]) -> bool:
    """Whether the last token completes a repetition: the first time it does, `repeated` says so for the first time."""
    for unit in range(1, LONGEST_UNIT + 1):
        span = max(unit * LEAST_TIMES, LEAST_TOKENS)
        if span > len(token_ids):
            return False  # and so are those of longer units
        tail = token_ids[-span:]
        if tail[unit:] == tail[:-unit]:
            return True
    return False


def repeated(token_ids: Sequence[int]) -> str:
    """What repeats itself without end in an answer; empty if nothing does.

    A run of up to 16 tokens that follows itself at least 8 times, over at least 16 tokens.
    """
    for unit in range(1, min(LONGEST_UNIT, len(token_ids) // LEAST_TIMES) + 1):
        run = 0  # tokens in a row that equal the one a unit before
        for i in range(unit, len(token_ids)):
            run = run + 1 if token_ids[i] == token_ids[i - unit] else 0
            if run + unit >= max(unit * LEAST_TIMES, LEAST_TOKENS):
                return f"degenerate: {unit} token{'s' * (unit > 1)} repeated {LEAST_TIMES} times or more"
    return ""
