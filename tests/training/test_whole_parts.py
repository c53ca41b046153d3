"""Parts that are referred to are whole when they are referred to; files that are none say what they are."""

import json
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.foreign.part_files import read_llm, read_whisper
from salmonrun.training.foreign.published import open_salmonn
from salmonrun.training.inspection.inspect import inspect_path
from salmonrun.training.model.config import load_config
from salmonrun.training.tensors import load_pickle
from tests.helpers.eat import published_state, write_folder, write_pretrained
from tests.helpers.published import Published

Edit = Callable[[dict[str, Any]], Any]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4242\n"
PAGE = b"<!DOCTYPE html>\n<html><body>404</body></html>\n"


def drop(name: str) -> Edit:
    return lambda tensors: tensors.pop(name)


def cut(name: str) -> Edit:
    return lambda tensors: tensors.update({name: tensors[name][:-1].clone()})


def edit_safetensors(folder: Path, edit: Edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_pickle(path: Path, key: str, edit: Edit) -> None:
    loaded = torch.load(path, weights_only=True)
    edit(loaded[key])
    torch.save(loaded, path)


# Tensors that are missing or misshapen

WHISPER = "model.encoder.layers.0.fc1.weight"
BEATS = "encoder.layers.0.fc1.weight"
EAT = "blocks.0.mlp.fc1.weight"


@pytest.mark.parametrize("edit", [drop(WHISPER), cut(WHISPER)], ids=["missing", "misshapen"])
def test_whisper(published: Published, edit: Edit) -> None:
    edit_safetensors(published.whisper, edit)
    with pytest.raises(CheckpointError, match=r"whisper .*: .*layers\.0\.fc1\.weight"):
        published.convert()
    assert not published.out.exists()
    (problem,) = inspect_path(published.whisper).problems
    assert "layers.0.fc1.weight" in problem


@pytest.mark.parametrize("edit", [drop(BEATS), cut(BEATS)], ids=["missing", "misshapen"])
def test_beats(published: Published, golden: Path, edit: Edit) -> None:
    beats = Path(shutil.copyfile(golden / "beats" / "beats.pt", published.folder / "beats.pt"))
    published = Published(published.folder, beats)
    edit_pickle(beats, "model", edit)
    with pytest.raises(CheckpointError, match=r"audio_encoder .*: .*layers\.0\.fc1\.weight"):
        published.convert()
    (problem,) = inspect_path(beats).problems
    assert "layers.0.fc1.weight" in problem


@pytest.mark.parametrize("edit", [drop(EAT), cut(EAT)], ids=["missing", "misshapen"])
@pytest.mark.parametrize("form", ["pretrained", "folder"])
def test_eat(tmp_path: Path, edit: Edit, form: str) -> None:
    write = write_pretrained if form == "pretrained" else write_folder
    state = published_state()
    assert inspect_path(write(tmp_path / "whole", state)).problems == ()
    edit(state)
    (problem,) = inspect_path(write(tmp_path / "damaged", state)).problems
    assert "blocks.0.mlp.fc1." in problem  # its width is the weight's: the bias does not fit


@pytest.mark.parametrize(
    "edit",
    [drop("model.layers.1.mlp.up_proj.weight"), cut("model.layers.1.mlp.up_proj.weight")],
    ids=["missing", "misshapen"],
)
def test_the_llm(published: Published, edit: Edit) -> None:
    edit_safetensors(published.llm, edit)
    with pytest.raises(CheckpointError, match=r"llm: .*layers\.1\.mlp\.up_proj\.weight"):
        published.convert()
    (problem,) = inspect_path(published.llm).problems
    assert "layers.1.mlp.up_proj.weight" in problem


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "model_type", "num_hidden_layers", "intermediate_size"])
@pytest.mark.parametrize("value", [None, "x", -1, [], 1.5])
def test_sizes_of_an_llm_that_are_none(published: Published, key: str, value: Any) -> None:
    path = published.llm / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises((CheckpointError, ConfigError)):
        published.convert()
    with suppress(CheckpointError):
        inspect_path(published.llm)


def test_whole_parts_have_no_problems(published: Published, golden: Path) -> None:
    for path in (published.whisper, golden / "beats" / "beats.pt", published.llm):
        assert inspect_path(path).problems == ()


# Files that are not what their names say


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def spanned(path: Path) -> None:
    """The end of an archive whose index says that it is the second of two."""
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2)
    path.write_bytes(b"PK\x03\x04" + bytes(100) + locator + b"PK\x05\x06" + bytes(18))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(POINTER), "is a Git LFS pointer to a file of 4242 bytes.*git lfs pull"),
        (lambda path: path.write_bytes(PAGE), "is an HTML page: a download that failed"),
        (lambda path: path.write_bytes(b""), "is empty: a download that failed"),
        (truncated, "is truncated"),
        (spanned, "is truncated"),
        (
            lambda path: path.write_bytes(b"<?xml version='1.0'?>\n<Error><Code>Denied"),
            "is what a server says",
        ),
        (lambda path: path.write_bytes(b"\xef\xbb\xbf" + PAGE), "is an HTML page: a download that failed"),
        (lambda path: path.write_bytes(b"Entry not found"), "is text that begins with 'Entry not found': a download"),
    ],
    ids=["pointer", "page", "empty", "truncated", "spanned", "error", "marked", "text"],
)
def test_files_that_are_none(published: Published, damage: Callable[[Path], Any], message: str) -> None:
    """torch's advice would be to set weights_only=False: to run whatever is in there."""
    safetensors = published.llm / "model.safetensors"
    for path, read in (
        (published.file, lambda: load_pickle(published.file)),
        (safetensors, lambda: read_llm(published.llm)),
    ):
        damage(path)
        with pytest.raises(CheckpointError, match=message) as caught:
            read()
        assert "weights_only" not in str(caught.value)
    assert message.split(":")[0].split(".*")[0] in inspect_path(published.file).problems[0]


@pytest.mark.parametrize("length", [10, 1000, -10])
def test_a_file_of_an_older_pytorch_that_is_cut_off(tmp_path: Path, length: int) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "old.pth").write_bytes((tmp_path / "old.pth").read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"is truncated: it ends at \d+ bytes, and says that there is more"):
        load_pickle(tmp_path / "old.pth")


@pytest.mark.parametrize("content", [POINTER, PAGE, b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_none(published: Published, content: bytes) -> None:
    (published.whisper / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        read_whisper(published.whisper)


# Settings and shapes that ended in tracebacks


def option(**changes: Any) -> Edit:
    return lambda loaded: loaded["config"]["model"].update(changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (option(lora_alpha=None), "lora_alpha in its config is None; expected a number"),
        (option(lora_alpha=float("nan")), "lora_alpha in its config is nan"),
        (option(lora_dropout="much"), "lora_dropout in its config is 'much'"),
        (option(second_per_window=None), "second_per_window in its config is None; expected a number"),
        (option(second_stride=[1]), r"second_stride in its config is \[1\]"),
        (option(lora=False), "its config has lora: False, but there are adapters"),
        (
            lambda loaded: loaded["model"].update(speech_query_tokens=torch.zeros(2, 128)),
            r"speech_query_tokens is \[2, 128\]; expected \[1, queries, width\]",
        ),
        (lambda loaded: loaded.update(pruned_layers=torch.tensor([1, 2])), r"pruned_layers is tensor.*expected a list"),
    ],
)
def test_settings_of_a_published_file(published: Published, edit: Edit, message: str) -> None:
    published.edit(edit)
    with pytest.raises(CheckpointError, match=message):
        published.convert()
    assert any("expected" in problem or "lora" in problem for problem in inspect_path(published.file).problems)


def test_heads_that_no_tensor_tells(published: Published) -> None:
    def narrow(loaded: dict[str, Any]) -> None:
        loaded["model"]["speech_query_tokens"] = torch.zeros(1, 1, 96)

    published.edit(narrow)
    with pytest.raises(CheckpointError, match=r"the Q-Former is 96 wide, no multiple of 64.*--qformer-heads"):
        published.convert()
    assert open_salmonn(published.file).tensors["qformer.query_tokens"]().shape == (1, 96)


def test_heads_and_seconds_may_be_said(published: Published) -> None:
    published.convert(qformer_heads=4, max_s=10.24)
    config = load_config(published.out)
    assert (config.qformer.heads, config.audio.max_s) == (4, 10.24)


# Configs of our own checkpoints


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["whisper"].update(heads=0), "heads is 0; expected 1 to"),
        (lambda data: data["audio_encoder"].update(patch_size=0), "patch_size is 0; expected 1 to"),
        (lambda data: data["audio_encoder"].update(conv_pos_groups=0), "conv_pos_groups is 0"),
        (lambda data: data["qformer"].update(heads=0), "heads is 0"),
        (lambda data: data["qformer"].update(layers=10**30), f"layers is {10**30}; expected 1 to 1000"),
        (lambda data: data["llm"].update(num_hidden_layers=10**9), "llm.num_hidden_layers is 1000000000"),
        (lambda data: data["llm"].update(num_attention_heads=0), "llm.num_attention_heads is 0"),
    ],
)
def test_sizes_that_no_model_has(tiny_checkpoint: Path, tmp_path: Path, change: Edit, message: str) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_config(folder)


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"[" * 100_000, POINTER])
def test_a_checkpoints_config_that_is_none(tiny_checkpoint: Path, tmp_path: Path, content: bytes) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        load_config(folder)
