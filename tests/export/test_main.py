"""python -m export."""

import json
import re
from pathlib import Path

import pytest

from salmonrun.export.__main__ import main
from salmonrun.runtime.bundle import open_bundle


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    precisions = ("--encoder-precision", "--llm-precision", "--target", "--window", "--max-length")
    for option in (*precisions, "--decoder", "--encoder", "--parity-budget", "--parity-speech", "--token-agreement"):
        assert option in text
    assert "example: python -m salmonrun.export" in text


def test_export(tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    options = ["--llm-precision", "int8", "--decoder", "onnx", "--encoder", "onnx"]
    options += ["--window", "trimmed", "--max-length", "512", "--quiet"]
    assert main([str(tiny_checkpoint), str(out), *options]) == 0
    manifest = open_bundle(out).manifest
    assert manifest.precisions("onnx")["whisper"] == "fp32"
    assert manifest.precisions("onnx")["llm"] == "int8"
    assert manifest.audio.window == "trimmed"
    assert manifest.llm.max_length == 512
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"{out}: " in printed.out
    for line in ("MiB", "whisper", "audio_encoder", "qformer", "llm", "end to end", "tokens", "speech"):
        assert line in printed.out


def test_export_with_another_scale_of_the_adapters(tmp_path: Path, golden_checkpoint: Path) -> None:
    assert main([str(golden_checkpoint), str(tmp_path / "bundle"), "--lora-scale", "2.5", "--quiet"]) == 0
    assert open_bundle(tmp_path / "bundle").manifest.provenance.lora_scale == 2.5


def test_export_with_a_recording_and_a_progress_bar(
    tmp_path: Path, tiny_checkpoint: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_checkpoint), str(tmp_path / "bundle"), "--golden-audio", str(speech)]) == 0
    parity = json.loads((tmp_path / "bundle" / "parity.json").read_text())
    assert parity["audio_s"] == pytest.approx(1.3, abs=1e-3)
    assert parity["budget"] is None
    printed = capsys.readouterr()
    for line in ("building llm", "reading weights", "checking llm", "the bundle's tokens", "PyTorch's logits"):
        assert line in printed.err
    assert re.search(r"checking llm: .*\D(\d+)/\1\n", printed.err)  # all of the steps that were foreseen
    # How many of how many weights, and how long it has taken and will take.
    assert re.search(r"PyTorch's logits .*/[\d.]+k weights \[\d\d:\d\d<", printed.err)
    assert f"{parity['tokens_agreeing']} of {parity['tokens_compared']}" in printed.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{tmp}/none", "{tmp}/bundle"], "config.json does not exist"),
        (["{checkpoint}", "{checkpoint}"], "exists; choose another name"),
        (["{checkpoint}", "{tmp}/bundle", "--golden-audio", "{tmp}/none.wav"], "none.wav' does not exist"),
        (
            ["{checkpoint}", "{tmp}/bundle", "--encoder-precision", "int8", "--parity-budget", "1e-6"],
            "exceeds the budget",
        ),
    ],
)
def test_errors_a_user_can_mend(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    arguments = [option.format(tmp=tmp_path, checkpoint=tiny_checkpoint) for option in options]
    assert main([*arguments, "--encoder", "onnx", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [[], ["a"], ["a", "b", "--target", "tpu"], ["a", "b", "--llm-precision", "int3"]])
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(options)
    assert exit_info.value.code == 2
    assert "usage: python -m salmonrun.export" in capsys.readouterr().err
