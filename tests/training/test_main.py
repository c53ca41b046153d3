"""python -m training."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from salmonrun.training.__main__ import main
from salmonrun.training.model.config import load_config
from salmonrun.training.starting.preset_names import PRESET_NAMES
from salmonrun.training.starting.presets import PRESETS


@pytest.mark.parametrize("command", [[], ["init"], ["convert"]])
def test_help(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert " ".join(["usage: python -m salmonrun.training", *command]) in text
    expected = {
        "init": ("--preset", "--seed", "--dtype"),
        "convert": ("--whisper", "--audio-encoder", "--llm", "--end-symbol"),
    }
    for word in expected[command[0]] if command else ("init", "convert"):
        assert word in text


def test_init(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "checkpoint"
    assert main(["init", str(out), "--preset", "demo", "--seed", "7", "--dtype", "bfloat16"]) == 0
    assert load_config(out).name == "demo"
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    printed = capsys.readouterr()
    assert printed.out == f"{out}: random weights of preset demo\n"
    assert printed.err == ""


def convert_arguments(golden: Path, out: Path) -> list[str]:
    salmonn = golden / "salmonn"
    frozen = [
        "--whisper",
        salmonn / "whisper",
        "--audio-encoder",
        golden / "beats" / "beats.pt",
        "--llm",
        salmonn / "llm",
    ]
    return ["convert", *map(str, [salmonn / "salmonn.pth", out, *frozen])]


def test_convert(golden: Path, golden_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "checkpoint"
    assert main(convert_arguments(golden, out)) == 0
    for file in golden_checkpoint.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: 73 tensors used"
    assert len(lines) == 1 + 4 + 3  # keys of the model; optimizer, scaler, epoch
    assert all(line.startswith("left out: ") for line in lines[1:])


def test_convert_with_prompts_and_an_end_symbol(golden: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"asr": "<Speech><SpeechHere></Speech> Recognize."}')
    extra = ["--prompts", str(prompts), "--end-symbol", "<|begin_of_text|>"]
    assert main([*convert_arguments(golden, tmp_path / "out"), *extra]) == 0
    prompt = load_config(tmp_path / "out").prompt
    assert prompt.tasks == {"asr": ("<Speech><SpeechHere></Speech> Recognize.",)}
    assert prompt.end_symbol == "<|begin_of_text|>"


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_init_into_an_existing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["init", str(tmp_path)], "exists; choose another name")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--whisper", "none", "none/config.json does not exist"),
        ("--audio-encoder", "none.pt", "none.pt does not exist"),
        ("--llm", "none", "none/config.json does not exist"),
        ("--prompts", "none.json", "none.json does not exist"),
        ("--end-symbol", "</s>", "end symbol '</s>' is no token"),
    ],
)
def test_convert_with_what_does_not_fit(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    fails(capsys, [*convert_arguments(golden, tmp_path / "out"), option, value], message)
    assert list(tmp_path.iterdir()) == []


def test_convert_without_beats(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = convert_arguments(golden, tmp_path / "out")
    at = arguments.index("--audio-encoder")
    fails(capsys, arguments[:at] + arguments[at + 2 :], "qformer.ln_audio.bias")


def test_all_presets_are_offered() -> None:
    assert tuple(PRESETS) == PRESET_NAMES


@pytest.mark.parametrize(
    "arguments", [[], ["train"], ["init"], ["init", "x", "--preset", "huge"], ["convert", "a.pth", "out"]]
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "usage: python -m salmonrun.training" in capsys.readouterr().err
