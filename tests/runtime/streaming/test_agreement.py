"""LocalAgreement on tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salmonrun.runtime.streaming.agreement import LocalAgreement

TOKENS = st.lists(st.integers(0, 1), max_size=8)


def test_what_two_in_a_row_agree_on() -> None:
    agreement = LocalAgreement(2, 0)
    assert agreement.add([1, 2, 3]) == []
    assert agreement.add([1, 2, 4, 5]) == [1, 2]
    assert agreement.add([1, 2, 4, 6]) == [4]
    assert agreement.add([1, 2, 4]) == []
    assert agreement.certain == [1, 2, 4]


def test_the_end_of_it_is_held_back() -> None:
    agreement = LocalAgreement(2, 2)
    agreement.add([1, 2, 3, 4])
    assert agreement.add([1, 2, 3, 4]) == [1, 2]
    assert agreement.add([1, 2, 3]) == []  # what is certain stays so, though less than two are behind it
    assert agreement.add([1, 2]) == []
    assert agreement.certain == [1, 2]


def test_one_hypothesis_agrees_with_itself() -> None:
    agreement = LocalAgreement(1, 1)
    assert agreement.add([7, 8, 9]) == [7, 8]
    assert agreement.add([7, 8, 6, 5]) == [6]


def test_what_is_certain_cannot_be_taken_back() -> None:
    agreement = LocalAgreement(1, 0)
    agreement.add([1, 2])
    for tokens in ([1], [1, 3], []):
        with pytest.raises(ValueError, match=r"must begin with what is certain: \[1, 2\]"):
            agreement.add(tokens)


@given(st.integers(1, 4), st.integers(0, 3), st.lists(TOKENS, max_size=12))
def test_certain_is_what_all_the_last_ones_begin_with(
    hypotheses: int, hold_back: int, answers: list[list[int]]
) -> None:
    agreement = LocalAgreement(hypotheses, hold_back)
    heard: list[list[int]] = []
    for answer in answers:
        before = list(agreement.certain)
        heard.append(before + answer)
        new = agreement.add(heard[-1])
        assert agreement.certain == before + new
        recent = heard[-hypotheses:]
        agreed = max(n for n in range(len(heard[-1]) + 1) if all(tokens[:n] == heard[-1][:n] for tokens in recent))
        enough = len(recent) == hypotheses
        assert len(agreement.certain) == max(len(before), agreed - hold_back if enough else 0)
        assert agreement.certain == heard[-1][: len(agreement.certain)]
