"""Which answers count as degenerate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salmonrun.runtime.repetition import ends_in_repetition, repeated


@pytest.mark.parametrize("unit", [[7], [7, 8], [1, 2, 3, 4, 5]])
def test_a_long_repetition_is_named_wherever_it_is(unit: list[int]) -> None:
    tokens = [50, 51, 52] + unit * 20 + [60, 61]
    assert f"{len(unit)} token" in repeated(tokens)


@pytest.mark.parametrize(
    "tokens",
    [[], [1], [9] * 15, [1, 2, 3] * 7, list(range(200)), [1, 2] * 7 + [3] + [1, 2] * 7],
    ids=["nothing", "one", "fifteen nines", "a refrain", "no repetition", "interrupted"],
)
def test_what_people_say_is_not(tokens: list[int]) -> None:
    assert repeated(tokens) == ""


TOKENS = st.integers(0, 2)


@given(st.lists(TOKENS, max_size=5), st.lists(TOKENS, min_size=1, max_size=17), st.integers(1, 12))
def test_it_is_complete_with_the_token_that_makes_it_one(before: list[int], unit: list[int], times: int) -> None:
    tokens = [*before, *unit * times]
    first = next((end for end in range(len(tokens) + 1) if repeated(tokens[:end])), None)
    assert first == next((end for end in range(len(tokens) + 1) if ends_in_repetition(tokens[:end])), None)
