"""Kept features: the same losses as computed ones, and never those of another model or recording."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.checkpoint import load, save
from salmonrun.training.data.annotation import Entry, read_annotation
from salmonrun.training.data.cache import FeatureCache
from salmonrun.training.data.config import Augmentation, DataConfig, DataSet
from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.frozen import FrozenFeatures
from salmonrun.training.finetuning.parts import choose_parts
from salmonrun.training.finetuning.recipe import Recipe, RunConfig, TrainedParts
from salmonrun.training.model.config import LoraConfig
from salmonrun.training.model.encoders.eat import EAT_FBANK
from salmonrun.training.model.features import Features, States
from salmonrun.training.model.lora import add_lora, lora_parameters
from salmonrun.training.model.salmonn import SalmonnModel
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from tests.helpers.runs import logged

FROZEN, WHISPER = TrainedParts(qformer=True, llm=True), TrainedParts(whisper=True, qformer=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = preset("tiny")
    folder = tmp_path_factory.mktemp("start") / "checkpoint"
    init_checkpoint(replace(config, audio=replace(config.audio, window="trimmed", min_s=0.5)), folder)
    return folder


@pytest.fixture
def annotation(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    entries: list[dict[str, Any]] = []
    for i in range(5):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * rng.standard_normal(8000 + 3000 * i), 16000)
        entries.append({"path": f"{i}.wav", "text": "one two three"[: 4 + i], "task": "asr"})
    entries.append({"path": "0.wav", "text": "five", "task": "asr", "expand_wav": ["3.wav"]})
    (tmp_path / "annotation.json").write_text(json.dumps({"annotation": entries}))
    return tmp_path / "annotation.json"


def frozen(checkpoint: Path, parts: TrainedParts = FROZEN) -> SalmonnModel:
    model = load(checkpoint)
    choose_parts(model, parts)
    return model


def filled(folder: Path, model: SalmonnModel, entries: list[Entry]) -> FeatureCache:
    features = FrozenFeatures(model, Augmentation())
    cache = FeatureCache(folder / features.key)
    cache.fill(entries, features.compute)
    return cache


@pytest.mark.parametrize("parts", [FROZEN, WHISPER], ids=["states", "spectrograms"])
def test_losses_are_those_without_a_cache(
    checkpoint: Path, annotation: Path, tmp_path: Path, parts: TrainedParts
) -> None:
    measured = []
    for name, cache in (("computed", None), ("kept", str(tmp_path / "cache")), ("again", str(tmp_path / "cache"))):
        run = RunConfig(str(tmp_path / name), steps=6, batch_size=3, lr=1e-3, log_every=1, save_every=6)
        finetune(Recipe(str(checkpoint), DataConfig((DataSet(str(annotation)),), cache=cache), run, parts))
        measured.append(logged(tmp_path / name, 6))
    computed, kept, again = measured
    assert len(computed) == 6
    assert kept == pytest.approx(computed, abs=2e-5)
    assert again == kept
    (folder,) = (tmp_path / "cache").iterdir()
    assert len(list(folder.iterdir())) == 6  # one for each recording


def test_dropout_of_frozen_adapters_makes_no_noise(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    """With it, computed states would differ from kept ones."""
    adapters = LoraConfig(r=2, dropout=0.5)
    model = load(checkpoint)
    add_lora(model.whisper, adapters, "whisper_lora")
    for parameter in lora_parameters(model.whisper).values():
        torch.nn.init.normal_(parameter, std=0.5)
    model.config = replace(model.config, whisper_lora=adapters)
    save(model, tmp_path / "start", checkpoint / "tokenizer.json")
    measured = []
    for name, cache in (("computed", None), ("kept", str(tmp_path / "cache"))):
        run = RunConfig(str(tmp_path / name), steps=6, batch_size=3, log_every=1, save_every=6)
        data = DataConfig((DataSet(str(annotation)),), cache=cache)
        finetune(Recipe(str(tmp_path / "start"), data, run, replace(FROZEN, whisper_lora=False)))
        measured.append(logged(tmp_path / name, 6))
    assert measured[0] == pytest.approx(measured[1], abs=2e-5)


def test_bf16_losses_with_a_cache_are_those_without_to_its_rounding(
    checkpoint: Path, annotation: Path, tmp_path: Path
) -> None:
    measured = []
    for name, cache in (("computed", None), ("kept", str(tmp_path / "cache"))):
        run = RunConfig(str(tmp_path / name), steps=6, batch_size=3, precision="bf16", log_every=1, save_every=6)
        finetune(Recipe(str(checkpoint), DataConfig((DataSet(str(annotation)),), cache=cache), run, FROZEN))
        measured.append(logged(tmp_path / name, 6))
    assert measured[0] == pytest.approx(measured[1], rel=0.02)


def test_what_is_kept_follows_from_what_is_frozen(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    entries, _ = read_annotation(annotation)
    for parts, kind in ((FROZEN, States), (WHISPER, Features)):
        cache = filled(tmp_path / "cache", frozen(checkpoint, parts), entries)
        assert isinstance(cache.read(entries[0]), kind)


def test_another_model_or_recording_is_computed_anew(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    entries, _ = read_annotation(annotation)
    model = frozen(checkpoint)
    cache = filled(tmp_path / "cache", model, entries)
    before = cache.read(entries[1])
    assert isinstance(before, States)
    with torch.no_grad():
        model.whisper.get_parameter("layers.0.fc1.weight").add_(0.1)
    after = filled(tmp_path / "cache", model, entries).read(entries[1])
    assert isinstance(after, States)
    assert not torch.equal(before.speech, after.speech)
    assert after.audio is not None
    assert before.audio is not None
    assert torch.equal(before.audio, after.audio)

    shutil.copy(entries[4].path, entries[1].path)
    with pytest.raises(CheckpointError, match=r"1\.wav has changed since its features were kept"):
        cache.read(entries[1])
    cache.fill(entries, FrozenFeatures(model, Augmentation()).compute)
    recorded_anew = cache.read(entries[1])
    assert isinstance(recorded_anew, States)
    assert len(recorded_anew.speech) > len(before.speech)


def test_another_front_end_is_computed_anew(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    entries, _ = read_annotation(annotation)
    model = frozen(checkpoint, WHISPER)
    filled(tmp_path / "cache", model, entries)
    assert model.config.audio_encoder
    encoder = replace(model.config.audio_encoder, fbank=EAT_FBANK)
    model.config = replace(model.config, audio_encoder=encoder)
    with pytest.raises(CheckpointError, match="has changed"):
        FeatureCache(tmp_path / "cache" / FrozenFeatures(model, Augmentation()).key).read(entries[0])


def test_augmentation_that_the_cache_would_undo_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="keeps encoder states, which augment would change"):
        FrozenFeatures(frozen(checkpoint), Augmentation(mask_p=0.5))
    with pytest.raises(ConfigError, match="keeps spectrograms, which augment would change"):
        FrozenFeatures(frozen(checkpoint, WHISPER), Augmentation(noise_p=0.5))
    FrozenFeatures(frozen(checkpoint, WHISPER), Augmentation(mask_p=0.5))
