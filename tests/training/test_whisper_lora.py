"""Adapters on Whisper's encoder: trained, stored, and merged into the bundle."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from salmonrun.export import export_bundle
from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.errors import CheckpointError, ConfigError, ParityError
from salmonrun.training import ModelConfig, load
from salmonrun.training.checkpoint import load_whisper, open_checkpoint, save
from salmonrun.training.data.config import DataConfig, DataSet
from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.parts import choose_parts
from salmonrun.training.finetuning.recipe import Recipe, RunConfig, TrainedParts
from salmonrun.training.model.config import LoraConfig, load_config
from salmonrun.training.model.lora import lora_parameters
from salmonrun.training.model.whisper import WhisperEncoder
from salmonrun.training.starting.conversion_checks import expected_shapes
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from tests.helpers.runs import write_noises

LORA = LoraConfig(r=4, alpha=12.0, dropout=0.0, targets=("q_proj", "v_proj"))
FROZEN = TrainedParts(qformer=False, whisper_lora=False)


def tiny(lora: LoraConfig | None) -> ModelConfig:
    config = preset("tiny")
    return replace(config, audio=replace(config.audio, window="trimmed", min_s=0.5), whisper_lora=lora)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random adapters that matter."""
    folder = tmp_path_factory.mktemp("adapted") / "checkpoint"
    init_checkpoint(tiny(LORA), folder)
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    for name in tensors:
        if name.startswith("whisper_lora."):
            tensors[name] = torch.randn(tensors[name].shape) * 0.15
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "checkpoint"
    init_checkpoint(tiny(None), folder)
    return folder


@pytest.fixture(scope="module")
def annotation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noises(tmp_path_factory.mktemp("data"), ("one", "two three"))


def recipe(checkpoint: Path, annotation: Path, out: Path, parts: TrainedParts, **changes: Any) -> Recipe:
    run = RunConfig(str(out), steps=4, batch_size=2, lr=3e-3, warmup_steps=1, log_every=1, save_every=4)
    return Recipe(str(checkpoint), DataConfig((DataSet(str(annotation)),)), run, parts, **changes)


def test_stored_under_clear_names_and_read_back(adapted: Path, tmp_path: Path) -> None:
    stored = load_file(adapted / "model.safetensors")
    names = {name for name in stored if name.startswith("whisper_lora.")}
    assert names == {
        f"whisper_lora.layers.{i}.self_attn.{p}_proj.{m}" for i in range(2) for p in "qv" for m in ("A", "B")
    }
    assert {name: expected_shapes(tiny(LORA))[name] for name in names} == {n: tuple(stored[n].shape) for n in names}
    model = load(adapted)
    assert model.config.whisper_lora == LORA
    save(model, tmp_path / "again", adapted / "tokenizer.json")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)


def test_a_config_without_the_key_still_loads(plain: Path, tmp_path: Path) -> None:
    raw = json.loads((plain / "config.json").read_text())
    del raw["whisper_lora"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load_config(tmp_path) == load_config(plain)


@torch.inference_mode()
def test_computes_what_the_formula_says(adapted: Path) -> None:
    """An encoder of plain weights W + alpha / r * B @ A, added in numpy."""
    stored = {name: value.numpy() for name, value in load_file(adapted / "model.safetensors").items()}
    whisper = {name.removeprefix("whisper."): value for name, value in stored.items() if name.startswith("whisper.")}
    for i in range(2):
        for projection in ("q_proj", "v_proj"):
            name = f"layers.{i}.self_attn.{projection}"
            a, b = (stored[f"whisper_lora.{name}.{matrix}"].astype(np.float64) for matrix in "AB")
            whisper[f"{name}.weight"] = (whisper[f"{name}.weight"] + 3.0 * b @ a).astype(np.float32)
    reference = WhisperEncoder(tiny(LORA).whisper).eval()
    reference.load_state_dict({name: torch.from_numpy(value) for name, value in whisper.items()})
    checkpoint = open_checkpoint(adapted)
    log_mel = torch.randn(1, 80, 120, generator=torch.Generator().manual_seed(0))
    expected = reference(log_mel)
    assert (load_whisper(checkpoint)(log_mel) - expected).abs().max() <= 1e-4
    merged = {name: get() for name, get in checkpoint.merged_whisper().items()}
    reference.load_state_dict(merged)
    assert (reference(log_mel) - expected).abs().max() <= 1e-4
    reference.load_state_dict({name: get() for name, get in checkpoint.parts["whisper"].items()})
    assert (reference(log_mel) - expected).abs().max() > 0.1, "the adapters do not show"


def test_the_bundle_has_them_merged(adapted: Path, annotation: Path, tmp_path: Path) -> None:
    bundle = export_bundle(adapted, tmp_path / "bundle")
    audio = load_audio(annotation.parent / "1.wav", min_s=0.5)
    greedy = GenerationConfig(max_new_tokens=12)
    answer = Engine.load(bundle).generate(audio, task="asr", config=greedy)
    assert list(answer.token_ids) == load(adapted).generate(audio, task="asr", config=greedy)


def test_the_gate_sees_adapters_that_are_not_merged(
    adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("salmonrun.training.checkpoint.Checkpoint.merged_whisper", lambda self: self.parts["whisper"])
    with pytest.raises(ParityError, match="whisper"):
        export_bundle(adapted, tmp_path / "bundle")


def test_the_switch_trains_them_alone(adapted: Path, annotation: Path, tmp_path: Path) -> None:
    parts = replace(FROZEN, whisper_lora=True)
    final = finetune(recipe(adapted, annotation, tmp_path / "run", parts))
    start, end = load_file(adapted / "model.safetensors"), load_file(final / "model.safetensors")
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {name for name in start if name.startswith("whisper_lora.")}


def test_whisper_itself_is_trained_without_them(adapted: Path, annotation: Path, tmp_path: Path) -> None:
    final = finetune(recipe(adapted, annotation, tmp_path / "run", replace(FROZEN, whisper=True)))
    start, end = load_file(adapted / "model.safetensors"), load_file(final / "model.safetensors")
    changed = {name.split(".")[0] for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"whisper"}
    assert torch.equal(start["whisper.embed_positions.weight"], end["whisper.embed_positions.weight"])


def test_a_recipe_adds_new_ones(plain: Path, annotation: Path, tmp_path: Path) -> None:
    parts = replace(FROZEN, whisper_lora=True)
    final = finetune(recipe(plain, annotation, tmp_path / "run", parts, whisper_lora=LORA))
    assert load_config(final) == replace(load_config(plain), whisper_lora=LORA)
    start, end = load_file(plain / "model.safetensors"), load_file(final / "model.safetensors")
    assert {name.split(".")[0] for name in end.keys() - start.keys()} == {"whisper_lora"}
    assert all(torch.equal(start[name], end[name]) for name in start)
    assert all(parameter.any() for parameter in lora_parameters(load(final).whisper).values())


def test_adding_to_those_that_are_there_is_refused(adapted: Path, annotation: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has adapters on Whisper; leave out whisper_lora"):
        finetune(recipe(adapted, annotation, tmp_path / "run", FROZEN, whisper_lora=LORA))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            replace(LORA, targets=("o_proj",)),
            r"whisper_lora\.targets has 'o_proj'; linear layers here are fc1, fc2",
        ),
        (replace(LORA, r=8), r"whisper_lora \(see whisper_lora\.r .*\): layers\.0\.self_attn\.\w_proj\.A has shape"),
        (replace(LORA, targets=("q_proj",)), r"whisper_lora .*not known .*v_proj\.A"),
        (None, r"whisper_lora .*8 tensors not known"),
    ],
)
def test_adapters_that_do_not_fit_are_named(
    adapted: Path, tmp_path: Path, lora: LoraConfig | None, message: str
) -> None:
    raw = json.loads((adapted / "config.json").read_text())
    raw["whisper_lora"] = None if lora is None else raw["whisper_lora"] | {"r": lora.r, "targets": list(lora.targets)}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((adapted / name).read_bytes())
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_part_that_changes_is_stored_and_no_longer_referred_to(golden_checkpoint: Path) -> None:
    model = load(golden_checkpoint)
    before = model.config.sources
    choose_parts(model, TrainedParts(whisper_lora=True))
    assert model.config.sources == before
    choose_parts(model, TrainedParts(whisper=True))
    assert model.config.sources == replace(before, whisper=None)
