"""How often answers of a score are right, and what a threshold rejects."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from salmonrun.runtime.errors import ConfigError
from salmonrun.training.evaluation.answers import Answered
from salmonrun.training.evaluation.reliability import draw_reliability, rejection_curve, rejection_scores, reliability
from salmonrun.training.evaluation.scores import score
from salmonrun.training.evaluation.tables import format_rejected


def test_bins_have_as_many_answers_each() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.05, 1, 2000)
    bins = reliability(np.log(probabilities).tolist(), (rng.uniform(size=2000) < probabilities).tolist())
    assert [one.answers for one in bins] == [200] * 10
    assert [one.probability for one in bins] == sorted(one.probability for one in bins)
    np.testing.assert_allclose([one.right for one in bins], [one.probability for one in bins], atol=0.1)
    assert [one.answers for one in reliability([-1.0, -2.0], [True, False])] == [2]


def test_a_curve_goes_from_none_to_all() -> None:
    false, true = rejection_curve([-1.0, -2.0, -0.5, -0.5], [-3.0, -1.5])
    assert false.tolist() == [0, 0, 0.25, 0.25, 0.5, 1]  # at -3, -2, -1.5, -1, -0.5 and above
    assert true.tolist() == [0, 0.5, 0.5, 1, 1, 1]


def test_an_answer_that_there_is_nothing_is_rejected_by_any_threshold() -> None:
    rows = [replace(answered("", text), score=score) for text, score in (("no", -0.1), ("yes", -0.2), ("no", None))]
    assert rejection_scores(rows, "no") == [-math.inf, -0.2]
    assert rejection_scores(rows, "") == [-0.1, -0.2]
    assert format_rejected(rows, -1.0, "no").endswith("1 of 2 answers (50.0%), 1 of them by an answer of 'no'")


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no answer has a score"):
        draw_reliability(tmp_path / "x.png", [], [])


def answered(reference: str, hypothesis: str) -> Answered:
    return Answered("set", 0, "a.wav", "asr", "", reference, hypothesis, 1.0, 0.1)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors", "exact"),
    [
        ("nothing said", "nothing said", 0, True),
        ("nothing said", "", 0, True),
        ("nothing said", "hello there", 2, False),
        ("hello there", "nothing said", 2, False),
        ("hello there", "hello there", 0, True),
    ],
)
def test_what_the_model_says_where_there_is_nothing_is_no_text(
    reference: str, hypothesis: str, errors: int, exact: bool
) -> None:
    (one,) = score([answered(reference, hypothesis)], nothing="nothing said").answers
    assert (one.normal.errors, one.spelled.errors, one.exact) == (errors, errors, exact)
