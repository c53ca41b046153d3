"""Scores by hand: word errors, spelled digits, captions with several references, and what is shown of them."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from salmonrun.training.evaluation.answers import Answered
from salmonrun.training.evaluation.cider import cider_d
from salmonrun.training.evaluation.scores import TaskScore, score, spell_digits, word_error_rate
from salmonrun.training.evaluation.tables import format_scores, write_table
from salmonrun.training.evaluation.tasks import is_of_task


def answered(reference: str, hypothesis: str, audio: str = "a.wav", task: str = "asr", index: int = 0) -> Answered:
    return Answered("set", index, audio, task, "", reference, hypothesis, 2.0, 0.5)


def captioned(*answers: tuple[str, str, str]) -> TaskScore:
    """Of (audio, reference, hypothesis)."""
    return score([answered(text, said, audio, "caption", i) for i, (audio, text, said) in enumerate(answers)])


@pytest.fixture(autouse=True)
def _no_aac_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aac_metrics", None)


def test_scores_by_hand() -> None:
    scores = score([answered("Four two nine.", "four too nine"), answered("set a timer", "Set a timer!")])
    assert scores.wer_spelled == pytest.approx(1 / 6)
    assert scores.exact == 0.5
    assert scores.rtf == pytest.approx(0.25)
    assert scores.entries == 2
    assert scores.captions is None


def test_the_normalizer_makes_one_word_of_digits() -> None:
    """Why both rates are stated."""
    scores = score([answered("four two nine zero", "four two nine one")])
    assert scores.wer == 1.0
    assert scores.wer_spelled == 0.25


def test_the_normalizer_drops_zeros_of_written_digits() -> None:
    scores = score([answered("zero seven", "07")])
    assert scores.wer == 1.0
    assert scores.wer_spelled == 0.0


@pytest.mark.parametrize("text", ["seven zero", "Seven, zero.", "70", "7 0", "7-0", "7,0", "Seven 0!", "7.0"])
def test_digit_strings_are_spelled_alike(text: str) -> None:
    assert spell_digits(text) == "seven zero"


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("1-2", "one two"),
        ("the code is 007, isn't it?", "the code is zero zero seven isn't it"),
        ("seventy", "seventy"),
        ("oh 7th", "oh 7th"),
        ("mp3 'quoted' it\u2019s", "mp3 quoted it's"),
        ("x\u00b2 \u0663", "x\u00b2 \u0663"),  # digits that are not 0 to 9 stay
        ("... !", ""),
    ],
)
def test_nothing_else_is_spelled(text: str, spelled: str) -> None:
    assert spell_digits(text) == spelled


def test_error_rate_counts_all_kinds_and_empty_texts() -> None:
    assert word_error_rate([("a b c d", "a x d e"), ("b", "")]) == pytest.approx((2 + 1 + 1) / 5)
    assert word_error_rate([("a b", "a b")]) == 0.0
    assert word_error_rate([("", "a b"), ("c", "c")]) == 2.0
    assert word_error_rate([("", "")]) == 0.0


def test_groups_of_tasks() -> None:
    assert [is_of_task("audiocaption_v2", wanted) for wanted in (None, "aac", "audiocaption_v2", "caption", "asr")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert is_of_task("asr", "asr")
    assert not is_of_task("qa", "aac")


def test_captions_are_compared_with_all_references_of_their_recording() -> None:
    rain, dog = "rain falls on a roof", "a dog barks at night"
    scores = captioned(("1.wav", "it rains", rain), ("1.wav", "Rain falls on a roof.", rain), ("2.wav", dog, "a cat"))
    assert scores.captions is not None
    expected = cider_d([rain, "a cat"], [["it rains", rain], [dog]])
    assert scores.captions.cider_d == pytest.approx(sum(expected) / 2)
    assert (scores.captions.recordings, scores.captions.references) == (2, 3)
    assert [one.cider_d for one in scores.answers] == pytest.approx([expected[0], expected[0], expected[1]])
    assert [one.exact for one in scores.answers] == [True, True, False]
    assert scores.exact == pytest.approx(2 / 3)


def test_other_tasks_have_one_reference_each() -> None:
    scores = score([answered("yes", "no"), answered("no", "no")])
    assert [one.exact for one in scores.answers] == [False, True]


def test_spider_is_asked_of_aac_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def evaluate(*arguments: Any, metrics: list[str]) -> tuple[dict[str, float], dict[str, float]]:
        asked.append((*arguments, metrics))
        return {"cider_d": 0.5, "spice": 0.1, "spider": 0.3}, {}

    monkeypatch.setitem(sys.modules, "aac_metrics", SimpleNamespace(evaluate=evaluate))
    scores = captioned(
        ("1.wav", "it rains", "rain\nfalls"), ("1.wav", "rain", "rain\nfalls"), ("2.wav", "a dog", "cat")
    )
    assert asked == [(["rain falls", "cat"], [["it rains", "rain"], ["a dog"]], ["spider"])]
    assert "caption: SPIDEr 0.300, by aac-metrics" in format_scores({"caption": scores})


def test_why_there_is_no_spider_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = (("1.wav", "it rains", "rain"), ("2.wav", "a dog", "a dog"))
    text = format_scores({"caption": captioned(*captions)})
    assert "caption: CIDEr-D " in text
    assert "SPIDEr was not computed: aac-metrics cannot be imported" in text

    def evaluate(*arguments: Any, metrics: list[str]) -> None:
        raise ValueError("Invalid java path.")

    monkeypatch.setitem(sys.modules, "aac_metrics", SimpleNamespace(evaluate=evaluate))
    text = format_scores({"caption": captioned(*captions)})
    assert "SPIDEr was not computed: aac-metrics failed: Invalid java path." in text


def test_a_single_recording_has_no_cider() -> None:
    assert "CIDEr-D is always 0 with a single recording" in format_scores(
        {"caption": captioned(("1.wav", "rain", "rain"))}
    )


def test_the_worst_answers_come_first_and_faultless_ones_not_at_all() -> None:
    rows = [answered("a b c d", "a b c d" + " x" * i, f"{i}.wav") for i in range(7)]
    lines = format_scores({"asr": score(rows)}).splitlines()
    at = lines.index("asr: the worst answers")
    assert lines[at + 1 : at + 4] == [
        "  6 wrong, WER 150.0%  6.wav",
        "    reference:  a b c d",
        "    hypothesis: a b c d x x x x x x",
    ]
    assert [line.split()[-1] for line in lines[at + 1 :: 3]] == ["6.wav", "5.wav", "4.wav", "3.wav", "2.wav"]
    assert "worst" not in format_scores({"asr": score(rows[:1])})


def test_one_wrong_word_is_not_the_worst_answer() -> None:
    """Though it may be all of its reference: five digits after Whisper's normalizer."""
    rows = [answered("one two three four five", "one two three four six", "digits.wav")]
    rows.append(answered("turn off the lights in the kitchen", "turn of the light in a kitchen", "lights.wav"))
    lines = format_scores({"asr": score(rows)}).splitlines()
    assert [line.split()[-1] for line in lines if line.endswith(".wav")] == ["lights.wav", "digits.wav"]
    assert "  1 wrong, WER 100.0%  digits.wav" in lines


def test_the_table_reads_back(tmp_path: Path) -> None:
    asr = score([answered('say "one, two"', "say one\ntoo"), answered("x", "x", "b.wav")])
    captions = captioned(("1.wav", "it rains", "it rains"), ("2.wav", "a dog", "a cat"))
    write_table(tmp_path / "new" / "table.csv", {"asr": asr, "caption": captions})
    with (tmp_path / "new" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["audio"] for row in rows] == ["a.wav", "b.wav", "1.wav", "2.wav"]
    assert (rows[0]["reference"], rows[0]["hypothesis"]) == ('say "one, two"', "say one\ntoo")
    assert (rows[0]["errors_spelled"], rows[0]["words_spelled"], rows[0]["wer_spelled"]) == ("1", "3", "0.3333")
    assert (rows[0]["exact"], rows[1]["exact"], rows[0]["seconds"], rows[0]["cider_d"]) == ("0", "1", "0.500", "")
    assert (rows[2]["wer"], rows[2]["exact"], float(rows[2]["cider_d"])) == ("", "1", 5.0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table.csv"]
