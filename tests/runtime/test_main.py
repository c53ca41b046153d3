"""The commands, through main(): what they print where, and their exit codes."""

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from salmonrun.runtime import AudioError, Engine, GenerationConfig
from salmonrun.runtime.__main__ import main
from salmonrun.runtime.bundle import file_sha256, open_bundle
from salmonrun.runtime.latency.recording import STORY
from salmonrun.runtime.manifest import MANIFEST, FileSpec, manifest_bytes
from tests.helpers.commands import run
from tests.helpers.damage import reseal

FEW = ["--max-new-tokens", "8"]


# transcribe


def test_transcribe(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tiny_engine: Engine, speech: Path) -> None:
    expected = tiny_engine.generate(speech, task="asr", config=GenerationConfig(max_new_tokens=8))
    code, out, err = run(capsys, "transcribe", tiny_bundle, speech, *FEW)
    assert code == 0
    assert out == [f"{speech}: {expected.text.strip()}"]
    assert len(err) == 1
    assert "1.3 s of audio" in err[0]
    assert "8 tokens, ended by length" in err[0]


def test_transcribe_leaves_out_what_is_rejected(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, speech: Path, tmp_path: Path
) -> None:
    code, out, err = run(capsys, "transcribe", tiny_bundle, speech, "--reject", *FEW)
    assert (code, out) == (1, [])
    assert f"error: --reject is asked for, but {tiny_bundle} has no confidence threshold" in err[0]
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    threshold = {"score": -1e-9, "false_rejection": 0.0, "recordings": 50, "annotation": "speech.json"}
    reseal(bundle, lambda data: data.update(confidence=threshold))
    soundfile.write(long := tmp_path / "long.wav", np.resize(soundfile.read(speech)[0], 35 * 16000), 16000)
    code, out, err = run(capsys, "transcribe", bundle, speech, long, "--reject", *FEW)
    assert (code, out) == (0, [f"{speech}: ", f"{long}: "])
    assert "rejected: its score is " in err[0]
    assert " answers of a score below -0.00" in err[1]


def test_transcribe_as_json(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tiny_engine: Engine, speech: Path
) -> None:
    config = GenerationConfig(max_new_tokens=8, num_beams=3)
    expected = tiny_engine.generate(speech, task="caption", config=config)
    code, out, err = run(
        capsys, "transcribe", tiny_bundle, speech, "--json", "--task", "caption", "--num-beams", 3, *FEW
    )
    assert (code, len(out), err) == (0, 1, [])
    printed = json.loads(out[0])
    assert printed["file"] == str(speech)
    (answer,) = printed["segments"]
    assert answer.keys() >= {"token_logprobs", "score", "low_confidence"}
    assert (answer["text"], answer["token_ids"]) == (expected.text, expected.token_ids)
    assert (answer["finish_reason"], printed["notes"], printed["error"]) == ("length", [], None)
    assert set(printed["timings"]) == set(expected.timings.as_dict())
    assert printed["timings"]["audio_s"] == 1.3


def test_prompt_and_question_reach_the_engine(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tiny_engine: Engine, speech: Path
) -> None:
    config = GenerationConfig(max_new_tokens=8)
    own = tiny_engine.generate(speech, prompt="<SpeechHere> Hm?", config=config)
    asked = tiny_engine.generate(speech, task="qa", question="Who?", config=config)
    _, out, _ = run(capsys, "transcribe", tiny_bundle, speech, "--json", "--prompt", "<SpeechHere> Hm?", *FEW)
    assert json.loads(out[0])["segments"][0]["token_ids"] == own.token_ids
    _, out, _ = run(capsys, "transcribe", tiny_bundle, speech, "--json", "--task", "qa", "--question", "Who?", *FEW)
    assert json.loads(out[0])["segments"][0]["token_ids"] == asked.token_ids


@pytest.mark.parametrize("as_json", [True, False])
def test_long_recordings_are_answered_about_part_by_part(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tiny_engine: Engine, tmp_path: Path, as_json: bool
) -> None:
    story, rate = soundfile.read(STORY, stop=10 * 16000)
    path = tmp_path / "long.wav"
    soundfile.write(path, np.concatenate([story, np.zeros(2 * rate)] * 4), rate)
    segments, info = tiny_engine.transcribe(path, generation=GenerationConfig(max_new_tokens=8))
    expected = [(segment.start, segment.end, segment.text.strip()) for segment in segments]
    assert len(expected) >= 4
    code, out, err = run(capsys, "transcribe", tiny_bundle, path, *FEW, *(["--json"] if as_json else []))
    assert code == 0
    if as_json:
        (document,) = (json.loads(line) for line in out)
        rows = document["segments"]
        assert [(row["start"], row["end"], row["text"].strip()) for row in rows] == expected
        assert (document["notes"], err) == (info.notes, [])
    else:
        assert out == [f"{path}: [{start:.2f} - {end:.2f}] {text}" for start, end, text in expected]
        assert f"{info.duration_s:.1f} s of audio" in err[0]
        assert all(note in err[0] for note in info.notes)


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("seconds", [2, 35])  # heard at once, and part by part
def test_a_file_that_is_cut_off_is_answered_about_with_a_note(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path, seconds: int, as_json: bool
) -> None:
    speech = soundfile.read(STORY)[0]
    soundfile.write(path := tmp_path / "cut.wav", np.resize(speech, 40 * 16000), 16000)
    os.truncate(path, 44 + 2 * 16000 * seconds)
    code, out, err = run(capsys, "transcribe", tiny_bundle, path, *FEW, *(["--json"] if as_json else []))
    assert code == 0
    said = json.loads(out[0])["notes"] if as_json else err
    assert f"the file ends after {seconds}.00 s; its header says 40.00 s" in said[0]


@pytest.mark.parametrize("seconds", [2, 35])  # heard at once, and part by part
def test_a_file_that_is_cut_off_can_be_refused(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tiny_engine: Engine, tmp_path: Path, seconds: int
) -> None:
    soundfile.write(path := tmp_path / "cut.wav", np.zeros(40 * 16000), 16000)
    os.truncate(path, 44 + 2 * 16000 * seconds)
    message = f"the file ends after {seconds}.00 s; its header says 40.00 s: strict refuses"
    code, out, err = run(capsys, "transcribe", tiny_bundle, path, "--strict", *FEW)
    assert (code, out, len(err)) == (1, [], 1)
    assert err[0].startswith(f"error: {path}: {message}")
    for ask in (tiny_engine.generate, tiny_engine.transcribe, tiny_engine.generate_iter):
        if seconds == 2 or ask == tiny_engine.transcribe:
            with pytest.raises(AudioError, match=message):
                ask(path, strict=True)


class Input:
    """Standard input with these bytes."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return not self.buffer.getvalue()


def test_standard_input_is_a_whole_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, speech: Path, tmp_path: Path
) -> None:
    _, (expected,), _ = run(capsys, "transcribe", tiny_bundle, speech, *FEW)
    monkeypatch.setattr(sys, "stdin", Input(speech.read_bytes()))
    code, out, _ = run(capsys, "transcribe", tiny_bundle, "-", *FEW)
    assert (code, out) == (0, [expected.replace(str(speech), "-")])
    soundfile.write(long := tmp_path / "long.wav", np.resize(soundfile.read(speech)[0], 35 * 16000), 16000)
    _, expected_parts, _ = run(capsys, "transcribe", tiny_bundle, long, *FEW)
    monkeypatch.setattr(sys, "stdin", Input(long.read_bytes()))  # though it can be read only once
    _, out, _ = run(capsys, "transcribe", tiny_bundle, "-", *FEW)
    assert len(out) >= 2
    assert out == [line.replace(str(long), "-") for line in expected_parts]
    monkeypatch.setattr(sys, "stdin", Input(b""))
    code, out, err = run(capsys, "transcribe", tiny_bundle, "-", *FEW)
    assert (code, out) == (1, [])
    assert "error: -: standard input is a terminal; expected an audio file" in err[-1]


def test_a_channel_can_be_chosen(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path, speech: Path
) -> None:
    samples = soundfile.read(speech)[0]
    soundfile.write(path := tmp_path / "right.wav", np.stack([0 * samples, samples], axis=1), 16000)
    _, (expected,), _ = run(capsys, "transcribe", tiny_bundle, speech, *FEW)
    for options, note in (
        ([], "channel 1 of 2 is used: channel 0 is silent"),
        (["--channel", "1"], "channel 1 of 2 is used"),
        (["--channel", "mix"], "2 channels are mixed"),
        (["--channel", "0"], "silence: the peak is -inf dBFS"),
    ):
        code, out, err = run(capsys, "transcribe", tiny_bundle, path, *FEW, *options)
        assert code == 0
        assert note in err[0]
        if "1" in note.split()[:2]:
            assert out == [expected.replace(str(speech), str(path))]
    code, _, err = run(capsys, "transcribe", tiny_bundle, path, "--channel", "2", *FEW)
    assert code == 1
    assert "channel is 2; the audio has channels 0 to 1" in err[-1]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_broken_file_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, speech: Path, tmp_path: Path, as_json: bool
) -> None:
    broken, gone, last = tmp_path / "broken.wav", tmp_path / "gone.wav", tmp_path / "last.wav"
    broken.write_text("no sound")
    shutil.copyfile(speech, last)
    options = ["--json", *FEW] if as_json else FEW
    code, out, err = run(capsys, "transcribe", tiny_bundle, speech, broken, gone, last, *options)
    assert code == 1
    if as_json:
        documents = [json.loads(line) for line in out]
        files = [document["file"] for document in documents if not document["error"]]
        assert [document["file"] for document in documents if document["error"]] == [str(broken), str(gone)]
    else:
        files = [line.split(": ")[0] for line in out]
    assert files == [str(speech), str(last)]
    errors = [line for line in err if line.startswith("error: ")]
    assert len(errors) == 2
    assert errors[0].startswith(f"error: {broken}: ")
    assert "ffmpeg" in errors[0]
    assert errors[1].startswith(f"error: {gone}: ")
    assert "does not exist" in errors[1]


def test_notes_are_shown(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros((4000, 2)), 8000)
    code, out, err = run(capsys, "transcribe", tiny_bundle, tmp_path / "silence.wav")
    assert code == 0
    assert out == [f"{tmp_path / 'silence.wav'}: "]
    for note in ("channel 0 of 2", "padded with zeros", "8000 Hz resampled", "silence"):
        assert note in err[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-beams", "17"], "error: --num-beams is 17, the limit is 16"),
        (["--task", "translate"], "unknown task 'translate'"),
        (["--task", ""], "unknown task ''"),
        (["--question", "Who?"], "takes no --question"),
        (["--task", "qa"], "needs --question, which fills its {}"),
        (["--prompt", ""], "the prompt is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_options(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, speech: Path, options: list[str], message: str
) -> None:
    code, out, err = run(capsys, "transcribe", tiny_bundle, speech, *options)
    assert (code, out, len(err)) == (1, [], 1)
    assert err[0].startswith("error: ")
    assert message in err[0]


@pytest.mark.parametrize("command", ["transcribe", "check"])
def test_missing_bundle(capsys: pytest.CaptureFixture[str], tmp_path: Path, speech: Path, command: str) -> None:
    files = [speech] if command == "transcribe" else []
    code, out, err = run(capsys, command, tmp_path / "gone", *files)
    assert (code, out) == (1, [])
    gone = tmp_path / "gone"
    assert err == [f"error: bundle {gone} does not exist; make one with salmonrun export CHECKPOINT {gone}"]


# check


def test_check(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    code, out, err = run(capsys, "check", tiny_bundle)
    assert (code, err) == (0, [])
    assert out[-1] == "passed"
    assert [line.split()[0] for line in out] == ["files", "weights", "exported", "logits", "tokens", "passed"]
    assert f"({len(open_bundle(tiny_bundle).manifest.files)} files)" in out[0]
    assert out[1].split(maxsplit=1)[1] == "whisper fp32, audio_encoder fp32, qformer fp32, llm fp32, lm_head fp32"
    assert (
        out[2]
        .split(maxsplit=1)[1]
        .startswith("exact: 1e-04 of PyTorch or float32's rounding, and equal tokens; largest ")
    )
    assert out[2].endswith(", 16 of 16 tokens are PyTorch's choice")


def test_check_says_what_a_quantized_bundle_had_to_hold(capsys: pytest.CaptureFixture[str], demo_bundle: Path) -> None:
    _, out, _ = run(capsys, "check", demo_bundle)
    measured = json.loads((demo_bundle / "parity.json").read_text())
    largest = max(error["relative"] for error in (*measured["stages"].values(), measured["end_to_end"]))
    assert "llm int4" in out[1]
    assert "relative error of every stage at most 0.35, and 90% of the tokens on speech that PyTorch" in out[2]
    assert f"largest {largest:.1e} (" in out[2]
    for line, (decoder, tokens) in zip(out[3:], measured["speech"].items(), strict=False):
        who = f"{decoder}: " if len(measured["speech"]) > 1 else ""
        expected = f"speech    {who}{tokens['agreeing']} of {tokens['positions']} tokens are PyTorch's choice"
        assert line.startswith(expected)


def test_check_as_json(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    code, out, err = run(capsys, "check", tiny_bundle, "--json", "--threads", 1)
    assert (code, len(out), err) == (0, 1, [])
    printed = json.loads(out[0])
    assert printed["passed"] is True
    assert printed["tokens"] == 16
    assert printed["differing"] == []
    assert printed["logits_difference"] <= printed["tolerance"]
    assert printed["engine"]["model"] == "tiny"
    assert printed["engine"]["threads"] == 1
    assert printed["exported"] == json.loads((tiny_bundle / "parity.json").read_text())


def altered_golden(tiny_bundle: Path, folder: Path, part: str) -> Path:
    """A bundle whose exporter saw other logits or tokens."""
    shutil.copytree(tiny_bundle, folder)
    path = folder / "golden.npz"
    with np.load(path) as file:
        golden = dict(file)
    if part == "logits":
        golden["logits"] = golden["logits"] + 2 * golden["tolerance"]
    else:
        golden["tokens"] = golden["tokens"].copy()
        golden["tokens"][5] = (golden["tokens"][5] + 1) % 256
    np.savez_compressed(path, **golden)
    manifest = open_bundle(tiny_bundle).manifest
    files = manifest.files | {"golden.npz": FileSpec(path.stat().st_size, file_sha256(path))}
    (folder / MANIFEST).write_bytes(manifest_bytes(replace(manifest, files=files)))
    return folder


@pytest.mark.parametrize("part", ["logits", "tokens"])
@pytest.mark.parametrize("as_json", [True, False])
def test_check_fails_where_the_machine_computes_something_else(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path, part: str, as_json: bool
) -> None:
    bundle = altered_golden(tiny_bundle, tmp_path / "bundle", part)
    code, out, _ = run(capsys, "check", bundle, *(["--json"] if as_json else []))
    assert code == 1
    assert json.loads(out[0])["passed"] is False if as_json else out[-1].startswith("FAILED")


def test_check_of_a_damaged_bundle(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "tokenizer.json").write_text("{}")
    code, out, err = run(capsys, "check", bundle)
    assert (code, out, len(err)) == (1, [], 1)
    assert "tokenizer.json" in err[0]


@pytest.mark.parametrize("missing", ["golden.npz", "parity.json"])
def test_check_of_a_bundle_without_its_proof(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path, missing: str
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = open_bundle(bundle).manifest
    files = {name: spec for name, spec in manifest.files.items() if name != missing}
    (bundle / MANIFEST).write_bytes(manifest_bytes(replace(manifest, files=files)))
    code, _, err = run(capsys, "check", bundle)
    assert code == 1
    assert f"has no {missing}; export the bundle again" in err[0]


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"stages": {}}'])
def test_check_of_a_bundle_whose_parity_is_something_else(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path, content: bytes
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    path = bundle / "parity.json"
    path.write_bytes(content)
    manifest = open_bundle(tiny_bundle).manifest
    files = manifest.files | {path.name: FileSpec(path.stat().st_size, file_sha256(path))}
    (bundle / MANIFEST).write_bytes(manifest_bytes(replace(manifest, files=files)))
    code, _, err = run(capsys, "check", bundle)
    assert code == 1
    assert "parity.json is not what an exporter writes" in err[0]


# The parser


@pytest.mark.parametrize("command", [[], ["transcribe"], ["check"]], ids=["runtime", "transcribe", "check"])
def test_help(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("usage: python -m salmonrun.runtime")
    assert printed.err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sing"],
        ["transcribe"],
        ["transcribe", "bundle"],
        ["transcribe", "bundle", "a.wav", "--task", "asr", "--prompt", "Hi"],
        ["transcribe", "bundle", "a.wav", "--num-beams", "many"],
        ["transcribe", "bundle", "a.wav", "--channel", "left"],
        ["check", "bundle", "--device", "tpu"],
        ["check", "bundle", "--unknown"],
    ],
    ids=" ".join,
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m salmonrun.runtime" in capsys.readouterr().err


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "salmonrun", "--help"], capture_output=True, text=True, check=True)
    assert "transcribe" in done.stdout
    assert "check" in done.stdout
