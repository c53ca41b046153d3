"""Recipes that make a model smaller: layers are left out before it is trained, windows are trimmed to what is heard."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.runtime import Engine
from salmonrun.runtime.config import BlockConfig
from salmonrun.runtime.errors import ConfigError
from salmonrun.training.__main__ import main
from salmonrun.training.checkpoint import load, open_checkpoint
from salmonrun.training.data.config import DataConfig, DataSet
from salmonrun.training.finetuning import finetune as module
from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.recipe import PruneConfig, Recipe, RunConfig, TrainedParts, load_recipe
from salmonrun.training.finetuning.trainer import RecipeTrainer
from salmonrun.training.model.whisper import WhisperEncoder
from salmonrun.training.pruning.prune import PruneOptions, prune
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from tests.helpers.runs import write_noises

EVERYTHING = TrainedParts(whisper=True, audio_encoder=True, qformer=True, llm=True)


@pytest.fixture(scope="module")
def annotation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noises(tmp_path_factory.mktemp("data"), ("one", "two three"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hears trimmed windows, and has four layers in the LLM."""
    config = preset("tiny")
    audio = replace(config.audio, window="trimmed", min_s=0.5)
    folder = tmp_path_factory.mktemp("start") / "checkpoint"
    init_checkpoint(replace(config, audio=audio, llm=config.llm | {"num_hidden_layers": 4}), folder)
    return folder


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("padded") / "checkpoint"
    init_checkpoint(preset("tiny"), folder)
    return folder


def recipe(checkpoint: Path, annotation: Path, out: Path, **run: Any) -> Recipe:
    settings = {"steps": 2, "batch_size": 2, "lr": 1e-3, "warmup_steps": 1, "log_every": 1, "save_every": 1, **run}
    return Recipe(str(checkpoint), DataConfig((DataSet(str(annotation)),)), RunConfig(str(out), **settings), EVERYTHING)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in load(folder).named_parameters()}


def test_a_run_prunes_first(
    checkpoint: Path, annotation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `prune apply` and a run on what it wrote; a run that was cut does not prune again."""
    smaller = PruneConfig(llm=0.25, criterion="influence", data=str(annotation))
    options = PruneOptions({"llm": 0.25}, PruneOptions.of(smaller).plan, data=str(annotation))
    prune(checkpoint, tmp_path / "by hand", options)
    expected = weights(finetune(recipe(tmp_path / "by hand", annotation, tmp_path / "two")))
    calls: list[object] = []
    monkeypatch.setattr(module, "prune", lambda *given, **named: calls.append(given) or prune(*given, **named))
    train = RecipeTrainer.train
    monkeypatch.setattr(RecipeTrainer, "train", killed)
    one = replace(recipe(checkpoint, annotation, tmp_path / "one"), prune=smaller)
    with pytest.raises(KeyboardInterrupt):
        finetune(one)
    monkeypatch.setattr(RecipeTrainer, "train", train)
    with pytest.raises(ConfigError, match=r"begun with other settings.*prune: .*'llm': 0\.25.*'llm': 0\.5"):
        finetune(replace(one, prune=replace(smaller, llm=0.5)))
    final = finetune(one)
    assert len(calls) == 1
    found = weights(final)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    (step,) = open_checkpoint(final).config.pruning
    assert (step.part, step.method, step.source) == ("llm", "dropped", open_checkpoint(checkpoint).sha256())
    assert open_checkpoint(final).config.llm["num_hidden_layers"] == 3


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_what_was_pruned_of_another_checkpoint_is_not_trained(
    checkpoint: Path, padded: Path, annotation: Path, tmp_path: Path
) -> None:
    smaller = PruneConfig(llm=0.25, criterion="influence", data=str(annotation))
    (tmp_path / "run").mkdir()
    prune(checkpoint, tmp_path / "run" / "pruned", PruneOptions.of(smaller))
    with pytest.raises(ConfigError, match=r"pruned was made of another .*checkpoint; remove it"):
        finetune(replace(recipe(padded, annotation, tmp_path / "run"), prune=smaller))


def test_the_recipe_prunes_when_it_is_asked_to(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    """`recipes/heal.yaml` with options on the command line, and nothing more."""
    file = Path(__file__).parents[2] / "recipes" / "heal.yaml"
    options = [f"checkpoint={checkpoint}", f"run.out={tmp_path / 'run'}", "run.steps=1", "run.batch_size=2"]
    asked = ["prune.llm=0.25", f"prune.data={annotation}", f"data.train.0.annotation={annotation}"]
    assert load_recipe(file, options).prune is None
    assert main(["finetune", "--cfg-path", str(file), "--options", *options, *asked]) == 0
    assert open_checkpoint(tmp_path / "run" / "final").config.llm["num_hidden_layers"] == 3


def test_what_cannot_be_pruned_is_said_when_the_recipe_is_read() -> None:
    with pytest.raises(ConfigError, match="prune has neither data nor measured"):
        PruneConfig(llm=0.25)
    with pytest.raises(ConfigError, match="nothing is to be left out"):
        PruneConfig(data="x.json")


@pytest.mark.parametrize("window", ["padded", "trimmed", None])
def test_the_window_travels_from_the_recipe_to_the_bundle(
    checkpoint: Path, padded: Path, annotation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: Any
) -> None:
    """From a checkpoint that has it the other way, or as it is where the recipe does not say."""
    start = checkpoint if window == "padded" else padded
    expected = window or "padded"
    frames: list[int] = []
    plain = WhisperEncoder.forward

    def watched(self: WhisperEncoder, log_mel: torch.Tensor, *given: Any) -> Any:
        frames.append(log_mel.shape[-1] // 2)
        return plain(self, log_mel, *given)

    monkeypatch.setattr(WhisperEncoder, "forward", watched)
    final = finetune(replace(recipe(start, annotation, tmp_path / "run", steps=1), window=window))
    assert set(frames) == {1500} if expected == "padded" else max(frames) < 200  # of recordings of a few seconds
    assert open_checkpoint(final).config.audio.window == expected
    engine = Engine.load(export_bundle(final, tmp_path / "bundle", ExportOptions(encoder="onnx")))
    assert engine.report().window == expected


def test_blocks_are_of_what_was_recorded(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="window is 'padded', but streaming"):
        replace(recipe(checkpoint, annotation, tmp_path), window="padded", streaming=BlockConfig((16,), (16,)))
