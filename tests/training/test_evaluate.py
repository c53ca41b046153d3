"""Evaluation: the same answers from a checkpoint and its bundle, resumed after a crash, and the files it writes."""

import csv
import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from salmonrun.runtime.audio import Audio
from salmonrun.runtime.config import AudioConfig, GenerationConfig, PromptConfig
from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.__main__ import main
from salmonrun.training.data.annotation import Entry
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.evaluation.answers import Answered, append_answer, resume_answers
from salmonrun.training.evaluation.evaluate import (
    BundleSubject,
    CheckpointSubject,
    Reply,
    Subject,
    evaluate,
    open_subject,
)
from salmonrun.training.evaluation.submission import check_testset_ids, write_submission
from salmonrun.training.evaluation.tables import format_rejected, format_scores
from tests.helpers.damage import reseal

SHORT = GenerationConfig(max_new_tokens=6)
TASKS: dict[str, tuple[str, ...]] = {"asr": ("Write.",), "qa": ("Answer: {}",), "caption": ("Describe.",)}


@dataclass
class Echo:
    """Says what it was asked and how many samples it heard, and fails when told to."""

    prompts: PromptConfig = field(default_factory=lambda: PromptConfig(tasks=TASKS))
    audio: AudioConfig = field(default_factory=AudioConfig)
    device: str = "cpu"
    sha256: str = "0" * 64
    threshold: float | None = None
    calls: int = 0
    crash_at: int | None = None

    def answer(self, audio: Audio, prompt: str, config: GenerationConfig) -> Reply:
        if self.calls == self.crash_at:
            raise KeyboardInterrupt
        self.calls += 1
        return Reply(f" {prompt} {len(audio.pcm)} ", [7] * 20 if self.calls == 1 else [1, 2], -0.5 * self.calls)


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(3):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(16000 + 3000 * i), 16000)
        made.append(Entry("set", i, path, f"text {i}", "qa" if i == 2 else "asr", "what?" if i == 2 else ""))
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def stored(out: Path) -> list[dict[str, Any]]:
    """The whole lines with answers; the first holds the settings."""
    return [json.loads(line) for line in out.read_text().split("\n")[1:-1]]


def test_checkpoint_and_bundle_answer_alike(
    tiny_checkpoint: Path, tiny_bundle: Path, entries: list[Entry], tmp_path: Path
) -> None:
    joined = replace(entries[0], index=3, appended=(entries[1].path,))
    checkpoint, bundle = open_subject(tiny_checkpoint), open_subject(tiny_bundle)
    assert isinstance(checkpoint, CheckpointSubject)
    assert isinstance(bundle, BundleSubject)
    assert checkpoint.sha256 != bundle.sha256
    assert checkpoint.sha256 == open_subject(tiny_checkpoint).sha256
    subjects: tuple[Subject, ...] = (checkpoint, bundle)
    done = [evaluate(subject, [*entries, joined], tmp_path / f"{i}.jsonl", SHORT) for i, subject in enumerate(subjects)]
    assert [row.hypothesis for row in done[0].answers] == [row.hypothesis for row in done[1].answers]
    assert done[0].answers[3].audio_s == done[1].answers[3].audio_s == pytest.approx(1 + 0.1 + 19 / 16)
    assert set(done[0].scores) == set(done[1].scores) == {"asr", "qa"}
    assert (done[0].scores["asr"].entries, done[0].scores["qa"].entries) == (3, 1)
    assert done[0].scores["asr"].wer == done[1].scores["asr"].wer
    assert stored(tmp_path / "0.jsonl") == [asdict(row) for row in done[0].answers]
    scores = [[row.score for row in evaluation.answers] for evaluation in done]
    np.testing.assert_allclose(np.array(scores[0], float), np.array(scores[1], float), atol=1e-3)


def test_a_crashed_evaluation_goes_on(entries: list[Entry], out: Path) -> None:
    first, second, whole = Echo(crash_at=2), Echo(), Echo()
    with pytest.raises(KeyboardInterrupt):
        evaluate(first, entries, out, SHORT)
    assert [row["index"] for row in stored(out)] == [0, 1]
    content = out.read_bytes()
    out.write_bytes(content[:-20])  # the crash cut the last line
    assert [row["index"] for row in stored(out)] == [0]
    resumed = evaluate(second, entries, out, SHORT)
    assert second.calls == 2
    assert [row["index"] for row in stored(out)] == [0, 1, 2]
    assert evaluate(whole, entries, out, SHORT) == resumed
    assert whole.calls == 0
    assert [row.hypothesis for row in resumed.answers] == ["Write. 16000", "Write. 19000", "Answer: what? 22000"]


@pytest.mark.parametrize(
    ("subject", "config", "message"),
    [
        (Echo(sha256="1" * 64), SHORT, r"made with model sha256 '0+', this run has '1+'"),
        (Echo(), replace(SHORT, num_beams=4), "made with num_beams 1, this run has 4"),
        (Echo(), GenerationConfig(), "made with max_new_tokens 6, this run has 200"),
        (Echo(PromptConfig(tasks=TASKS | {"asr": ("Say.",)})), SHORT, "prompt of asr 'Write.', this run has 'Say.'"),
    ],
)
def test_answers_of_other_settings_are_refused(
    entries: list[Entry], out: Path, subject: Echo, config: GenerationConfig, message: str
) -> None:
    evaluate(Echo(), entries[:2], out, SHORT)
    before = out.read_bytes()
    with pytest.raises(CheckpointError, match=message):
        evaluate(subject, entries, out, config)
    assert out.read_bytes() == before
    assert subject.calls == 0


def test_answers_to_other_entries_are_refused(entries: list[Entry], out: Path) -> None:
    first, second = entries[:2]
    evaluate(Echo(), [first], out, SHORT)
    subject = Echo()
    for changed in (
        replace(first, text="other"),
        replace(first, task="caption"),
        replace(first, path=second.path),
        replace(first, appended=(second.path,)),
    ):
        with pytest.raises(CheckpointError, match="answers to other entries"):
            evaluate(subject, [second, changed], out, SHORT)
    assert subject.calls == 0


@pytest.mark.parametrize("content", ["cut", "{}\n", '{"settings": {}}\n{"index": 1}\n', "x,y\n1,2\n", "[]\n", "\n"])
def test_another_file_is_neither_read_nor_changed(entries: list[Entry], out: Path, content: str) -> None:
    out.write_text(content)
    with pytest.raises(CheckpointError, match="does not hold answers of `salmonrun evaluate`"):
        evaluate(Echo(), entries, out, SHORT)
    assert out.read_text() == content


def test_every_text_survives_the_file(out: Path) -> None:
    rows = [
        Answered("set", i, "a.wav", "asr", "", text, text, 1.0, 0.1)
        for i, text in enumerate(["line\u2028break", "tab\tnew\nline\x85", "\u4f60\u597d \U0001f41f", '"quoted"', ""])
    ]
    assert resume_answers(out, {}) == []
    with out.open("a") as file:
        for row in rows:
            append_answer(file, row)
    assert resume_answers(out, {}) == rows


def test_what_was_asked_before_is_not_asked_again(entries: list[Entry], out: Path) -> None:
    captions = [replace(entries[0], index=i, task="caption", text=f"caption {i}") for i in range(3)]
    subject = Echo()
    done = evaluate(subject, [*captions, replace(entries[1], index=3)], out, SHORT)
    assert subject.calls == 2
    assert [row.reference for row in done.answers[:3]] == ["caption 0", "caption 1", "caption 2"]
    assert len({(row.hypothesis, row.took_s) for row in done.answers[:3]}) == 1
    assert done.scores["caption"].captions is not None
    assert done.scores["caption"].captions.references == 3


def test_unusable_entries_are_refused(entries: list[Entry], tmp_path: Path, out: Path) -> None:
    missing = Entry("set", 7, tmp_path / "none.wav", "text")
    with pytest.raises(CheckpointError, match=r"entry 7: .*none\.wav does not exist"):
        evaluate(Echo(), [missing], out, SHORT)
    entries[0].path.write_bytes(entries[0].path.read_bytes()[:44])
    with pytest.raises(CheckpointError, match="entry 0: "):
        evaluate(Echo(), entries, out, SHORT)
    with pytest.raises(CheckpointError, match="entry 1: the text is empty"):
        evaluate(Echo(), [replace(entries[1], text="")], out, SHORT)
    assert not out.exists()


def test_a_recording_whose_data_are_bad_is_named(entries: list[Entry], out: Path) -> None:
    soundfile.write(entries[1].path, np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    with pytest.raises(CheckpointError, match=r"set: entry 1: .*finite"):
        evaluate(Echo(), entries, out, SHORT)
    assert [row["index"] for row in stored(out)] == [0]


def test_joined_recordings_are_padded_as_a_whole(tmp_path: Path) -> None:
    paths = []
    for i, (count, rate) in enumerate(((3200, 16000), (2000, 8000), (1600, 16000))):
        paths.append(tmp_path / f"{i}.wav")
        soundfile.write(paths[-1], np.full(count, 0.1 * (i + 1)), rate, subtype="FLOAT")
    audio = load_recording(Entry("set", 0, paths[0], "x", appended=(paths[1], paths[2])), AudioConfig())
    second = 3200 + 1600 + 4000
    assert len(audio.pcm) == 16000
    assert audio.source_s == pytest.approx((second + 1600 + 1600) / 16000)
    np.testing.assert_allclose(audio.pcm[:3200], 0.1, atol=1e-6)
    assert not audio.pcm[3200:4800].any()
    np.testing.assert_allclose(audio.pcm[5000 : second - 200], 0.2, atol=1e-3)  # resampled
    assert not audio.pcm[second : second + 1600].any()
    np.testing.assert_allclose(audio.pcm[second + 1600 : second + 3200], 0.3, atol=1e-6)
    assert not audio.pcm[second + 3200 :].any()
    assert audio.notes[-2:] == ("3 recordings joined, 0.1 s apart", "0.750 s padded with zeros to 1 s")


def test_repetitions_are_counted_and_rejected_answers_told(entries: list[Entry], out: Path) -> None:
    done = evaluate(Echo(), entries, out, SHORT)
    assert [(row.score, row.repeated) for row in done.answers] == [(-0.5, True), (-1.0, False), (-1.5, False)]
    assert "asr: 1 answers repeat themselves without end" in format_scores(done.scores)
    assert format_rejected(done.answers, -1.0) == "rejected at the bundle's threshold -1.000: 1 of 3 answers (33.3%)"


def test_errors_are_told_by_length(entries: list[Entry], out: Path) -> None:
    """The recordings have 1, 1.2 and 1.4 s; the last one is asked something else."""
    longer = [replace(entries[1], index=3, text="Write. 19000"), *entries]
    table = format_scores(evaluate(Echo(), longer, out, SHORT).scores)
    assert "asr: WER by length of the recordings: to 1 s 100.0% of 1, to 2 s 50.0% of 2" in table
    assert "qa: WER by length" not in table


def test_a_submission_needs_ids_but_no_texts(entries: list[Entry], out: Path, tmp_path: Path) -> None:
    asked = [replace(entry, text="", testset_id=f"test000{entry.index}") for entry in entries]
    done = evaluate(Echo(), asked, out, SHORT, submission=True)
    assert done.scores == {}
    said = [replace(done.answers[0], hypothesis=text) for text in ('Say "A", b', "", "NaN")]
    write_submission(tmp_path / "made.csv", asked, said)
    assert (tmp_path / "made.csv").read_text() == (
        'testset_id,text\ntest0000,"say ""a"", b"\ntest0001, \ntest0002,nan \n'  # pandas reads "" and "nan" as missing
    )
    check_testset_ids(asked)
    with pytest.raises(CheckpointError, match=r"set: entry 1: testset_id is missing"):
        check_testset_ids([asked[0], entries[1]])
    with pytest.raises(CheckpointError, match=r"set: entry 0: testset_id 'test0000' is that of 2 entries"):
        check_testset_ids([asked[0], asked[1], replace(asked[2], testset_id="test0000")])


@pytest.fixture
def annotation(entries: list[Entry], tmp_path: Path) -> Path:
    path = tmp_path / "annotation.json"
    listed = [
        {"path": entries[0].path.name, "text": "set a timer", "testset_id": "test0000"},
        {"path": entries[1].path.name, "task": "caption", "testset_id": "test0001", "text": "rain falls"},
        {"path": entries[1].path.name, "task": "caption", "testset_id": "test0002"},
    ]
    path.write_text(json.dumps({"annotation": listed}))
    return path


def run(tiny_bundle: Path, annotation: Path, *options: str) -> int:
    where = [str(tiny_bundle), str(annotation), "--out", str(annotation.with_name("out.jsonl"))]
    return main(["evaluate", *where, "--max-new-tokens", "4", *options])


def test_the_command_prints_scores_and_writes_a_table(
    tiny_bundle: Path, annotation: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(tiny_bundle, annotation, "--mode", "valid_asr", "--csv", str(tmp_path / "asr.csv")) == 0
    printed = capsys.readouterr().out
    for words in ("WER spelled", "asr: the worst answers", "reference:  set a timer", "RTF"):
        assert words in printed
    with (tmp_path / "out.utterances.csv").open(newline="") as file:
        assert [row["reference"] for row in csv.DictReader(file)] == ["set a timer"]
    assert (tmp_path / "asr.csv").read_text().startswith("testset_id,text\ntest0000,")


def test_the_command_writes_a_submission(
    tiny_bundle: Path, annotation: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = tmp_path / "made.csv"
    assert run(tiny_bundle, annotation, "--mode", "submission_aac", "--csv", str(made)) == 0
    assert capsys.readouterr().out.startswith(f"{made}: 2 answers, ")
    with made.open(newline="") as file:
        assert [row["testset_id"] for row in csv.DictReader(file)] == ["test0001", "test0002"]
    assert not (tmp_path / "out.utterances.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "submission_aac"], "say where to with --csv FILE"),
        (["--task", "aac"], "entry 2: the text is empty"),
        (["--task", "audiocaption"], "no entry of task 'audiocaption'; its tasks are: asr, caption"),
        (["--limit", "0"], "--limit is 0; it must be at least 1"),
        (["--out-of-domain", "x.json"], "say where to with --reliability PNG"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    tiny_bundle: Path, annotation: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(tiny_bundle, annotation, *options) == 1
    assert message in capsys.readouterr().err


def test_the_command_draws_the_reliability(
    tiny_bundle: Path, annotation: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sealed = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    threshold = {"score": -1e-9, "false_rejection": 0.0, "recordings": 50, "annotation": "speech.json"}
    reseal(sealed, lambda data: data.update(confidence=threshold))
    picture, strangers = tmp_path / "picture.png", ["--out-of-domain", str(annotation)]
    assert run(sealed, annotation, "--task", "asr", "--reliability", str(picture), *strangers) == 0
    printed = capsys.readouterr().out
    assert "rejected at the bundle's threshold -0.000: 1 of 1 answers (100.0%)" in printed
    assert "out of domain: rejected at the bundle's threshold -0.000: 1 of 1 answers (100.0%)" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out.out-of-domain.jsonl").is_file()


def test_mode_and_task_exclude_each_other(tiny_bundle: Path, annotation: Path) -> None:
    with pytest.raises(SystemExit):
        run(tiny_bundle, annotation, "--mode", "valid_asr", "--task", "asr")
