"""Which answers count as degenerate."""

import pytest

from salmonrun.runtime.repetition import repeated


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
