"""Recipes, annotations, journals and kept features that are damaged or hostile end in an error that says so."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.data.annotation import Entry, read_annotation
from salmonrun.training.data.cache import FeatureCache
from salmonrun.training.evaluation.answers import Answered, append_answer, read_answers, resume_answers
from salmonrun.training.finetuning.recipe import load_recipe
from salmonrun.training.model.features import States
from salmonrun.training.yaml_file import MAX_BYTES, parse_yaml

BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "is nested more than 32 levels deep"),
        (b"a: " + b"{b: " * 50 + b"1" + b"}" * 50, "is nested more than 32 levels deep"),
        (BOMB.encode(), r"alias \*a1 stands for what has aliases itself"),
        (b"a: &a [*a]", r"alias \*a stands for what has aliases itself"),
        (b"x: &x 1\na: [" + b"*x, " * 200 + b"1]", "is one of more than 100"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"run: {steps: " + b"9" * 5000 + b"}", "is not YAML"),
        (b"a: 2026-13-45", "is not YAML"),
        (b"? [a]\n: 1", "is not YAML"),
        (b"a: " + b"x" * MAX_BYTES, f"has more than {MAX_BYTES} bytes"),
        (b"1: 2\ncheckpoint: x", "unknown key"),
        (b"{1: 2, a: 3, null: 4}", "unknown key"),
        (b"a: !!python/object/apply:os.system ['true']", "is not YAML"),
        (b"just text", "holds a str; expected keys"),
    ],
)
def test_recipes(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    started = time.process_time()
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "recipe.yaml")
    assert time.process_time() - started < 10


@pytest.mark.parametrize("option", ["run.steps=[", "run.steps=" + "[" * 5000, "run.lr=&a [*a]"])
def test_options_of_a_recipe(tmp_path: Path, option: str) -> None:
    (tmp_path / "recipe.yaml").write_text("run: {}")
    with pytest.raises(ConfigError, match="option 'run"):
        load_recipe(tmp_path / "recipe.yaml", [option])


@pytest.mark.parametrize("path", ["/dev/zero", "/dev"])
def test_devices_in_annotations(tmp_path: Path, path: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"annotation": [{"path": path, "text": "x", "task": "asr"}]}))
    entries, problems = read_annotation(tmp_path / "a.json")
    assert not entries
    assert f"{path!r} is a folder or a device; expected a recording" in str(problems[0])


def test_aliases_that_people_write() -> None:
    text = "base: &base {lr: 1}\none: *base\ntwo:\n  <<: *base\n  steps: 2"
    assert parse_yaml(text, "x") == {"base": {"lr": 1}, "one": {"lr": 1}, "two": {"lr": 1, "steps": 2}}


def test_a_pair_of_three(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("checkpoint: x\ndata: {train: []}\nrun: {out: x, betas: [0.9, 0.9, 0.9]}")
    with pytest.raises(ConfigError, match=r"run\.betas: expected 2 values, got 3"):
        load_recipe(tmp_path / "recipe.yaml")


# Annotations


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"9" * 5000])
def test_annotations_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.json is not JSON"):
        read_annotation(tmp_path / "a.json")


@pytest.mark.parametrize("path", ["../secret.wav", "a/../../secret.wav", "/../secret.wav", "a\0b.wav"])
@pytest.mark.parametrize("key", ["path", "expand_wav"])
def test_paths_that_lead_out(tmp_path: Path, path: str, key: str) -> None:
    entry: dict[str, Any] = {"path": "a.wav", "text": "x"} | {key: [path] if key == "expand_wav" else path}
    (tmp_path / "a.json").write_text(json.dumps({"annotation": [entry]}))
    entries, (problem,) = read_annotation(tmp_path / "a.json")
    assert entries == []
    assert "leads out of its folder; name a prefix" in problem.reason


def test_paths_that_stay(tmp_path: Path) -> None:
    listed = [{"path": name, "text": "x"} for name in ("a.wav", "a/../b.wav", "/LibriSpeech/c.flac", "..d.wav")]
    (tmp_path / "a.json").write_text(json.dumps({"annotation": listed}))
    entries, problems = read_annotation(tmp_path / "a.json")
    assert (len(entries), problems) == (4, [])


# Answers

ROW = Answered("a.json", 0, "0.wav", "asr", "", "one", "won", 1.0, 0.1, -0.5)


def write_answers(file: Path, *rows: Any) -> None:
    resume_answers(file, {})
    with file.open("a") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")


def test_answers_that_were_written(tmp_path: Path) -> None:
    resume_answers(tmp_path / "a.jsonl", {})
    with (tmp_path / "a.jsonl").open("a") as file:
        append_answer(file, ROW)
    assert resume_answers(tmp_path / "a.jsonl", {}) == [ROW]


def test_answers_with_a_doubled_line(tmp_path: Path) -> None:
    write_answers(tmp_path / "a.jsonl", vars(ROW), vars(ROW))
    for read in (lambda file: resume_answers(file, {}), read_answers):
        with pytest.raises(CheckpointError, match=r"has two answers to entry 0 of a\.json: it was edited"):
            read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "change",
    [{"hypothesis": None}, {"hypothesis": 5}, {"index": "0"}, {"audio_s": "long"}, {"repeated": 1}, {"score": [1]}],
)
def test_answers_of_wrong_types(tmp_path: Path, change: dict[str, Any]) -> None:
    write_answers(tmp_path / "a.jsonl", vars(ROW) | change)
    with pytest.raises(CheckpointError, match=r"does not hold answers of .*line 2\.\w+: expected"):
        resume_answers(tmp_path / "a.jsonl", {})


# Kept features


def test_damaged_features_are_made_again_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A value that was flipped would be trained on, and nobody would know."""
    entries, computed = [], []
    for i in range(6):
        (tmp_path / f"{i}.wav").write_bytes(b"x")
        entries.append(Entry("a.json", i, tmp_path / f"{i}.wav", "x"))

    def compute(entry: Entry) -> States:
        computed.append(entry.index)
        return States(torch.full((3, 4), float(entry.index)), None)

    cache = FeatureCache(tmp_path / "cache")
    assert cache.fill(entries, compute) == 0
    files = {
        entry.index: next(f for f in (tmp_path / "cache").iterdir() if _first(f) == entry.index) for entry in entries
    }
    content = bytearray(files[0].read_bytes())
    content[-1] ^= 1  # of a value
    files[0].write_bytes(content)
    files[1].write_bytes(files[1].read_bytes()[:-4])
    files[2].write_bytes(b"")
    save_file({"speech": torch.zeros(3, 4)}, files[3])  # whole, and without a digest
    save_file({"other": torch.zeros(3, 4)}, files[4])
    for index in range(5):
        with pytest.raises(CheckpointError, match="is damaged; start the run again"):
            cache.read(entries[index])
    assert cache.fill(entries, compute) == 5
    assert "5 of 6 files are damaged, and are made again" in caplog.text
    assert computed == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]
    for entry in entries:
        states = cache.read(entry)
        assert isinstance(states, States)
        assert states.speech.eq(entry.index).all()


def _first(file: Path) -> int:
    return int(load_file(file)["speech"][0, 0])
