"""Parts that a file was not trained with are refused or warned about by name."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.__main__ import main
from salmonrun.training.foreign.model_names import differ, read_name
from salmonrun.training.starting.convert import Conversion, convert_salmonn
from tests.helpers import published
from tests.helpers.parts import edit_json, write_llm, write_whisper


@pytest.mark.parametrize(
    ("named", "given", "expected"),
    [
        ("lmsys/vicuna-13b-v1.1", "vicuna-13b-v1.5", True),
        ("lmsys/vicuna-13b-v1.1", "/models/vicuna-13b-v1.1/", False),
        ("vicuna-13b-v1.1", "vicuna-7b-v1.1", True),
        ("vicuna-7b", "lmsys/vicuna-7b-v1.5", False),  # the one does not say
        ("vicuna-7b-v1.5", "meta-llama/Llama-2-7b-hf", True),
        ("meta-llama/Llama-3.2-3B-Instruct", "unsloth/Llama-3.2-3B-Instruct-bnb-4bit", False),
        ("meta-llama/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.2-3B", True),
        ("meta-llama/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", True),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2-7B-Instruct", True),
        ("Qwen/Qwen3-4B", "Qwen3-4B", False),
        ("mistralai/Mistral-7B-Instruct-v0.2", "Mistral-7B-Instruct-v0.3", True),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-360M-Instruct", True),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "DeepSeek-R1-Distill-Llama-8B", False),
        ("openai/whisper-large-v2", "whisper-large-v3", True),
        ("openai/whisper-large-v3", "whisper-large-v3-turbo", True),
        ("openai/whisper-small", "whisper-small.en", True),
        ("openai/whisper-large-v2", "whisper", False),  # says nothing
        ("/data/llm", "vicuna-7b-v1.5", False),
        ("", "vicuna-7b-v1.5", False),
        ("C:\\models\\vicuna-13b-v1.1", "vicuna-13b-v1.5", True),
    ],
)
def test_names(named: str, given: str, expected: bool) -> None:
    assert differ(named, given) == expected
    assert differ(given, named) == expected
    assert not differ(named, named)


def test_what_a_name_says() -> None:
    name = read_name("openai/whisper-large-v3-turbo")
    assert name
    assert (name.family, name.version, name.size, name.variants) == ("whisper", "3", "", frozenset({"large", "turbo"}))
    name = read_name("lmsys/vicuna-13b-v1.1")
    assert name
    assert (name.family, name.version, name.size) == ("vicuna", "1.1", "13b")


class Case:
    """A file whose config names its parts, and the parts it is given."""

    def __init__(self, folder: Path, llm: str = "llm", whisper: str = "whisper", **sizes: Any) -> None:
        self.folder, self.llm, self.whisper = folder, folder / llm, folder / whisper
        write_llm(self.llm, **sizes)
        write_whisper(self.whisper)

    def convert(self, name: str = "x.pth", extra: dict[str, torch.Tensor] | None = None, **named: str) -> Conversion:
        torch.manual_seed(7)
        state = published.qformer_state(48, 0, 64) | (extra or {})
        pth = published.write_salmonn(self.folder / name, state, named)
        return convert_salmonn(pth, self.folder / "out", whisper=self.whisper, audio_encoder=None, llm=self.llm)


def test_parts_of_the_names_in_the_file(tmp_path: Path) -> None:
    case = Case(tmp_path, "vicuna-13b-v1.1", "whisper-large-v2", max_position_embeddings=2048)
    conversion = case.convert(llama_path="lmsys/vicuna-13b-v1.1", whisper_path="openai/whisper-large-v2")
    assert conversion.warnings == ()


def test_a_vicuna_of_another_version_is_warned_about(tmp_path: Path) -> None:
    case = Case(tmp_path, "vicuna-13b-v1.5", max_position_embeddings=4096)
    named, positions = case.convert(llama_path="lmsys/vicuna-13b-v1.1").warnings
    assert "trained with llama_path 'lmsys/vicuna-13b-v1.1', this is vicuna-13b-v1.5" in named
    assert "has max_position_embeddings 2048" in positions
    assert "has 4096: Vicuna v1.5?" in positions


def test_a_folder_without_a_name_is_told_by_its_positions(tmp_path: Path) -> None:
    (warning,) = Case(tmp_path, max_position_embeddings=2048).convert(llama_path="vicuna-7b-v1.5").warnings
    assert "has 2048: Vicuna before v1.5?" in warning


def test_released_files_are_known_by_their_names(tmp_path: Path) -> None:
    """They do not all say what they were trained on."""
    (warning,) = Case(tmp_path, max_position_embeddings=4096).convert("salmonn_v1.pth").warnings
    assert "vicuna-13b-v1.1" in warning


def test_the_name_that_a_config_was_saved_under_counts(tmp_path: Path) -> None:
    case = Case(tmp_path)
    edit_json(case.llm / "config.json", _name_or_path="meta-llama/Llama-3.2-3B")
    (warning,) = case.convert(llama_path="meta-llama/Llama-3.2-3B-Instruct").warnings
    assert "this is meta-llama/Llama-3.2-3B:" in warning


@pytest.mark.parametrize("named", ["openai/whisper-large-v3", "openai/whisper-large-v3-turbo", "whisper-turbo"])
def test_a_whisper_of_other_mels_is_refused(tmp_path: Path, named: str) -> None:
    with pytest.raises(CheckpointError, match=rf"takes 80 mels, but .*{named}', which takes 128"):
        Case(tmp_path).convert(whisper_path=named)
    assert not (tmp_path / "out").exists()


def test_another_whisper_of_the_same_mels_is_warned_about(tmp_path: Path) -> None:
    case = Case(tmp_path, whisper="whisper-large-v1")
    (warning,) = case.convert(whisper_path="openai/whisper-large-v2").warnings
    assert "this is whisper-large-v1" in warning


def test_the_output_layer_in_the_file_tells_another_llm(tmp_path: Path) -> None:
    case = Case(tmp_path, tie_word_embeddings=True)
    head = published.padded_head(case.llm)
    assert case.convert(extra=head).warnings == ()
    shutil.rmtree(tmp_path / "out")
    (name, value), *_ = head.items()
    (warning,) = case.convert(extra={name: value + 0.1}).warnings
    assert "differs from the LLM's embeddings" in warning
    shutil.rmtree(tmp_path / "out")
    (warning,) = case.convert(extra={name: value[:-7]}).warnings
    assert "another tokenizer?" in warning
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight has shape \[\d+, 32\], the LLM \[512, 64\]"):
        case.convert(extra={name: value[:, :32].clone()})


def test_warnings_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(tmp_path, whisper="whisper-large-v1")
    case.convert(whisper_path="openai/whisper-large-v2")
    shutil.rmtree(tmp_path / "out")
    parts = ["--whisper", str(case.whisper), "--llm", str(case.llm)]
    assert main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "out"), *parts]) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("warning: ")
    assert "warning:" not in printed.out


def test_a_misfit_says_what_else_is_strange(tmp_path: Path) -> None:
    case = Case(tmp_path, "vicuna-7b-v1.5", hidden_size=32, max_position_embeddings=4096)
    with pytest.raises(
        CheckpointError, match=r"proj\.(weight|bias) has shape .*; .*'vicuna-13b-v1\.5', this is vicuna-7b"
    ):
        case.convert(llama_path="vicuna-13b-v1.5")
