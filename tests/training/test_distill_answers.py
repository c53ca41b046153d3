"""The teacher's own answers as an annotation."""

import json
import shutil
from pathlib import Path

import pytest

from salmonrun.runtime.errors import ConfigError
from salmonrun.training.__main__ import main
from salmonrun.training.checkpoint import load
from salmonrun.training.data.annotation import read_annotation
from salmonrun.training.data.config import DataConfig, DataSet
from salmonrun.training.distillation.answers import Choice
from salmonrun.training.evaluation.answers import Answered
from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.recipe import Recipe, RunConfig
from salmonrun.training.starting.init import init_checkpoint
from tests.helpers.distilling import EVERYTHING, four_layers

DEMO = Path(__file__).parents[2] / "demo"
RECORDINGS = DEMO / "recordings"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's recordings without their texts, and one that is too long for it."""
    folder = tmp_path_factory.mktemp("data")
    listed = json.loads((RECORDINGS / "annotation.json").read_text())["annotation"]
    for entry in listed:
        shutil.copy(RECORDINGS / entry["path"], folder)
        entry["text"] = ""
    joined = {"path": listed[0]["path"], "expand_wav": [listed[0]["path"]] * 40, "task": "asr", "text": ""}
    (folder / "mine.json").write_text(json.dumps({"annotation": [*listed, joined]}))
    return folder / "mine.json"


def test_a_checkpoint_writes_what_a_student_of_another_tokenizer_is_trained_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers" / "answers.json"
    assert main(["distill", "answers", str(DEMO / "checkpoint"), str(data), str(out), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    entries, problems = read_annotation(out)
    asked, _ = read_annotation(data)
    assert problems == []
    assert f"1 of {len(asked)} answers are left out: longer than the teacher hears" in printed
    assert f"{len(entries)} answers; salmonrun finetune" in printed
    assert len(entries) == len(asked) - 1
    model = load(DEMO / "checkpoint")
    for entry, wanted in zip(entries, asked, strict=False):
        assert entry.path.resolve() == wanted.path.resolve()
        assert (entry.task, entry.question) == (wanted.task, wanted.question)
        answer = model.generate(entry.path, task=entry.task, question=entry.question or None)
        assert entry.text == model.tokenizer.decode(answer).strip()
    student = tmp_path / "student"
    init_checkpoint(four_layers(), student, fresh=True, texts=[e.text for e in entries] * 20, vocab_size=300)
    assert load(student).tokenizer.encode(entries[0].text) != model.tokenizer.encode(entries[0].text)
    run = RunConfig(str(tmp_path / "run"), steps=1, batch_size=2, save_every=1)
    assert finetune(Recipe(str(student), DataConfig((DataSet(str(out)),)), run, EVERYTHING)).is_dir()


def test_a_run_that_was_cut_asks_for_what_is_missing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, journal = tmp_path / "answers.json", tmp_path / "answers.answers.jsonl"
    command = ["distill", "answers", str(DEMO / "checkpoint"), str(data), str(out)]
    assert main(command) == 0
    whole, rows = out.read_bytes(), journal.read_bytes().splitlines(keepends=True)
    out.unlink()
    journal.write_bytes(b"".join(rows[:-2]) + rows[-2][:30])
    assert main(command) == 0
    assert out.read_bytes() == whole
    assert journal.read_bytes().splitlines()[:-2] == [row.rstrip() for row in rows[:-2]]


def answered(hypothesis: str, **other: object) -> Answered:
    row = {"reference": "seven zero", "score": -0.2, "task": "asr", "question": "", "audio": "a.wav", **other}
    return Answered("data", 0, hypothesis=hypothesis, audio_s=1.0, took_s=0.1, **row)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("choice", "answer", "reason"),
    [
        (Choice(), answered("seven one"), ""),
        (Choice(), answered(""), "empty"),
        (Choice(), answered("go go go", repeated=True), "repeats itself"),
        (Choice(min_score=-0.1), answered("seven zero"), "below the score"),
        (Choice(min_score=-0.3), answered("seven zero"), ""),
        (Choice(max_wer=0.4), answered("seven one"), "too far from the text"),
        (Choice(max_wer=0.0), answered("70"), ""),
        (Choice(max_wer=0.0), answered("seven one", reference=""), ""),
        (Choice(max_wer=0.0), answered("rain", task="caption"), ""),
    ],
)
def test_answers_that_are_not_worth_learning_are_left_out(choice: Choice, answer: Answered, reason: str) -> None:
    assert choice.reason_against(answer) == reason


def test_what_cannot_be_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="a mean log probability is at most 0"):
        Choice(min_score=0.5)
    with pytest.raises(ConfigError, match="max_wer is -1"):
        Choice(max_wer=-1.0)
    teacher = str(DEMO / "checkpoint")
    assert main(["distill", "answers", teacher, str(data), str(tmp_path / "answers.txt")]) == 1
    assert "choose a name that ends in .json" in capsys.readouterr().err
    refused = ["--min-score", "-0.000000001", "--limit", "2"]
    assert main(["distill", "answers", teacher, str(data), str(tmp_path / "answers.json"), *refused]) == 1
    assert "no answer is left to be learned; of 2 were 2 below the score" in capsys.readouterr().err
