"""Aligning two answers on tokens."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salmonrun.runtime.longform.stitch import Run, common_run, seam


class Words:
    """A tokenizer whose tokens below 100 begin words."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(f" {token}" if token < 100 else f"+{token}" for token in token_ids)


def joined(previous: list[int], following: list[int], expected: float) -> list[int] | None:
    run = common_run(previous, following, expected)
    if run is None:
        return None
    kept = seam(Words(), following, run)  # type: ignore[arg-type]
    return previous[: run.previous + kept] + following[run.following + kept :]


def test_an_end_that_is_a_beginning() -> None:
    assert common_run([1, 2, 3, 4, 5], [4, 5, 6, 7], 2) == Run(3, 0, 2)
    assert joined([1, 2, 3, 4, 5], [4, 5, 6, 7], 2) == [1, 2, 3, 4, 5, 6, 7]


def test_words_that_the_cut_spoiled_are_dropped() -> None:
    """The last word of one window and the first of the next are heard in part only."""
    assert joined([1, 2, 3, 4, 5, 77], [88, 3, 4, 5, 6, 7], 4) == [1, 2, 3, 4, 5, 6, 7]


def test_the_longest_run_wins() -> None:
    assert joined([1, 2, 9, 9, 3, 4, 5], [9, 9, 2, 3, 4, 5, 6], 5) == [1, 2, 9, 9, 3, 4, 5, 6]


def test_of_equal_runs_the_one_where_the_overlap_should_be() -> None:
    """A digit said thrice, in an overlap of four tokens."""
    assert common_run([1, 2, 7, 7, 3, 7, 7], [7, 7, 3, 4], 5) == Run(2, 0, 3)
    assert common_run([5, 5, 5, 5, 5, 5], [5, 5, 9], 2) == Run(4, 0, 2)
    assert common_run([5, 5, 5, 5, 5, 5], [5, 5, 9], 3) == Run(3, 0, 2)


@pytest.mark.parametrize(
    ("previous", "following"),
    [
        ([1, 2, 3], [4, 5, 6]),
        ([1, 2, 3], [3, 4, 5]),  # one token is chance
        ([], [1, 2]),
        ([1, 2], []),
    ],
)
def test_nothing_in_common(previous: list[int], following: list[int]) -> None:
    assert common_run(previous, following, 2) is None


def test_a_short_run_is_chance_where_many_tokens_are_expected() -> None:
    previous, following = [*range(20, 40), 1, 2], [1, 2, *range(50, 70)]
    assert common_run(previous, following, 8) == Run(20, 0, 2)
    assert common_run(previous, following, 9) is None


def test_runs_far_from_the_seam_are_not_looked_at() -> None:
    previous = [1, 2, 3, 4, *range(10, 30)]
    assert common_run(previous, [1, 2, 3, 4, 5], 4) is None
    assert common_run(previous, [1, 2, 3, 4, 5], 11) == Run(0, 0, 4)


def test_the_seam_is_where_a_word_begins() -> None:
    following = [101, 102, 3, 103, 104, 105, 6, 7]
    assert seam(Words(), following, Run(0, 0, 6)) == 2  # type: ignore[arg-type]
    assert seam(Words(), following, Run(0, 3, 3)) == 3  # type: ignore[arg-type]  # right behind the run
    assert seam(Words(), following, Run(0, 3, 2)) == 2  # type: ignore[arg-type]  # none: all of it
    assert seam(Words(), [1, 2], Run(0, 0, 2)) == 1  # type: ignore[arg-type]


@given(st.integers(0, 30), st.integers(2, 10), st.integers(0, 30))
def test_what_both_heard_is_there_once(before: int, shared: int, after: int) -> None:
    tokens = list(range(before + shared + after))
    assert joined(tokens[: before + shared], tokens[before:], shared) == tokens
