"""Evaluation: the same answers from a checkpoint and its bundle, resumed after a crash, scored by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runtime.config import GenerationConfig
from runtime.errors import CheckpointError
from training.annotation import Entry
from training.evaluate import Answered, Subject, evaluate, read_answers, score, word_error_rate

SHORT = GenerationConfig(max_new_tokens=6)


def answered(reference: str, hypothesis: str) -> Answered:
    return Answered("set", 0, "asr", reference, hypothesis, 2.0, 0.5)


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(3):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(16000 + 3000 * i), 16000)
        made.append(Entry("set", i, path, f"text {i}", "qa" if i == 2 else "asr", "what?" if i == 2 else ""))
    return made


def test_checkpoint_and_bundle_answer_alike(
    tiny_checkpoint: Path, tiny_bundle: Path, entries: list[Entry], tmp_path: Path
) -> None:
    scores = [
        evaluate(Subject(path), entries, tmp_path / f"{name}.jsonl", SHORT)
        for name, path in (("checkpoint", tiny_checkpoint), ("bundle", tiny_bundle))
    ]
    texts = [[row.hypothesis for row in read_answers(tmp_path / f"{n}.jsonl")] for n in ("checkpoint", "bundle")]
    assert texts[0] == texts[1]
    assert set(scores[0]) == set(scores[1]) == {"asr", "qa"}
    assert (scores[0]["asr"].entries, scores[0]["qa"].entries) == (2, 1)
    assert scores[0]["asr"].wer == scores[1]["asr"].wer


def test_a_crashed_evaluation_goes_on(tiny_bundle: Path, entries: list[Entry], tmp_path: Path) -> None:
    subject, out = Subject(tiny_bundle), tmp_path / "out.jsonl"
    evaluate(subject, entries, out, SHORT)
    lines = out.read_text().splitlines(keepends=True)
    first = json.loads(lines[0]) | {"hypothesis": "kept"}
    out.write_text(json.dumps(first) + "\n" + lines[1][:20] + "\n")
    evaluate(subject, entries, out, SHORT)
    assert read_answers(out)[0].hypothesis == "kept"
    assert sorted(row.index for row in read_answers(out)) == [0, 1, 2]


def test_answers_to_other_entries_are_refused(tiny_bundle: Path, entries: list[Entry], tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text(json.dumps(vars(answered("other", "x"))) + "\n")
    with pytest.raises(CheckpointError, match="answers to other entries"):
        evaluate(Subject(tiny_bundle), entries, tmp_path / "out.jsonl", SHORT)


def test_unusable_entries_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    missing = Entry("set", 7, tmp_path / "none.wav", "text")
    with pytest.raises(CheckpointError, match=r"entry 7: .*none\.wav does not exist"):
        evaluate(Subject(tiny_bundle), [missing], tmp_path / "out.jsonl", SHORT)


def test_scores_by_hand() -> None:
    scores = score([answered("Four two nine.", "four too nine"), answered("set a timer", "Set a timer!")])
    assert scores.wer_spelled == pytest.approx(1 / 6)
    assert scores.exact == 0.5
    assert scores.rtf == pytest.approx(0.25)
    assert scores.entries == 2


def test_the_normaliser_makes_one_word_of_digits() -> None:
    """Why both rates are stated."""
    scores = score([answered("four two nine zero", "four two nine one")])
    assert scores.wer == 1.0
    assert scores.wer_spelled == 0.25


def test_error_rate_counts_all_kinds_and_empty_answers() -> None:
    assert word_error_rate([("a b c d", "a x d e"), ("b", "")]) == pytest.approx((2 + 1 + 1) / 5)
    assert word_error_rate([("a b", "a b")]) == 0.0
