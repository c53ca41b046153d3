"""Recipes: YAML with dotted overrides, read strictly."""

import json
from pathlib import Path

import pytest

from salmonrun.runtime.errors import ConfigError
from salmonrun.training.distillation.recipe import load_distill_recipe
from salmonrun.training.finetuning.recipe import load_recipe

YAML = """
checkpoint: start/
data:
  train:
    - annotation: a.json
    - {annotation: b.json, weight: 0.5}
run:
  out: run/
  lr: 3e-5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(YAML)
    return path


def test_values_and_defaults(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.run.lr == 3e-5  # YAML 1.1 has no such float
    assert [data.weight for data in recipe.data.train] == [1.0, 0.5]
    assert recipe.train.qformer
    assert not recipe.train.whisper


def test_overrides(file: Path) -> None:
    recipe = load_recipe(file, ["run.lr=1e-4", "run.min_lr=0.0", "train.whisper=true", "augment.noise_p=0.3"])
    assert (recipe.run.lr, recipe.train.whisper, recipe.augment.noise_p) == (1e-4, True, 0.3)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("run.lrr=1", "unknown key 'lrr'"),
        ("run.lr", "has no '='"),
        ("run.lr.x=1", "lr is not a group"),
        ("run.steps=0", "run.steps is 0"),
        ("run.lr=1e-6", "min_lr"),
        ("run.precision=int3", "'fp32', 'bf16', 'fp16'"),
        ("run.steps=many", "expected int"),
        ("data.train.2.weight=1", "2 is no place in a list of 2"),
        ("data.train.x=1", "x is no place in a list of 2"),
        ("run.clip_percentile=0", "clip_percentile is 0"),
        ("augment.noise_p=1.5", "a probability is from 0 to 1"),
        ("augment.noise_low=1", "noise_low 1.* is more than noise_high"),
        ("augment.noise_files_p=0.5", "noise_files_p without noise_files"),
    ],
)
def test_bad_options_are_named(file: Path, option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(file, [option])


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="holds a list"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_recipe(tmp_path / "broken.yaml")


def test_overrides_reach_into_lists(file: Path) -> None:
    recipe = load_recipe(file, ["data.train.1.annotation=c.json", "data.train.1.tasks=[asr]"])
    assert [(data.annotation, data.tasks) for data in recipe.data.train] == [("a.json", None), ("c.json", ("asr",))]


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_recipes_that_come_with_the_project_are_valid(path: Path) -> None:
    if path.stem.startswith("distill"):
        load_distill_recipe(path)
    else:
        load_recipe(path)


def test_the_prompts_that_come_with_the_project_have_their_places() -> None:
    prompts = json.loads((Path(__file__).parents[2] / "recipes" / "prompts.json").read_text())
    assert {"asr", "audiocaption", "audiocaption_v2", "QA", "gender_recognition", "phone_recognition"} <= set(prompts)
    for task, texts in prompts.items():
        assert all(text.count("<SpeechHere>") == 1 for text in texts)
        assert all(("{}" in text) == (task.lower() == "qa") for text in texts)
