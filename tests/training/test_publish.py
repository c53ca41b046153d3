"""recipes/nota-09.yaml from parts to a file of the published layout, and back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.__main__ import main
from salmonrun.training.checkpoint import load, open_checkpoint
from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.recipe import load_recipe
from salmonrun.training.model.config import LoraConfig, QFormerConfig
from salmonrun.training.pruning.choose import Plan
from salmonrun.training.pruning.prune import PruneOptions, prune
from salmonrun.training.pruning.published import write_published
from salmonrun.training.starting.assemble import assemble
from salmonrun.training.starting.convert import convert_salmonn
from tests.helpers import published
from tests.helpers.parts import write_llm, write_whisper

RECIPE = Path(__file__).parents[2] / "recipes" / "nota-09.yaml"


@pytest.fixture(scope="module")
def folder(golden: Path, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llm/ and whisper/ of 6 and 4 layers, a checkpoint `start` that refers to them, `pruned` and `trained`."""
    folder = tmp_path_factory.mktemp("nota-09")
    whisper = write_whisper(folder / "whisper", 4)
    llm = write_llm(folder / "llm", 6, intermediate_size=128)  # 4 bits need blocks of 64
    beats = golden / "beats" / "beats.pt"
    qformer = QFormerConfig(dim=published.QFORMER, heads=2, ffn=published.FFN)
    lora = LoraConfig(8, 48.0)
    assemble(folder / "start", whisper=whisper, audio_encoder=beats, llm=llm, qformer=qformer, lora=lora)
    entry = {"path": str(speech), "text": "one two", "task": "asr"}
    (folder / "mine.json").write_text(json.dumps({"annotation": [entry]}))
    options = PruneOptions({"llm": 0.3, "whisper": 0.3}, Plan("loss"), data=folder / "mine.json")
    prune(folder / "start", folder / "pruned", options)
    changes = [f"checkpoint={folder}/pruned", f"data.train.0.annotation={folder}/mine.json", f"run.out={folder}/run"]
    finetune(load_recipe(RECIPE, [*changes, "run.steps=1", "run.warmup_steps=0", "run.batch_size=1"]))
    return folder


def test_the_recipe_leaves_out_30_percent_and_trains_adapters_on_both(folder: Path) -> None:
    config = open_checkpoint(folder / "run" / "final").config
    assert (config.llm["num_hidden_layers"], config.whisper.layers) == (4, 3)
    assert config.lora == LoraConfig(8, 48.0)
    assert config.whisper_lora == LoraConfig(8, 48.0)
    assert [(step.part, step.criterion, step.layers) for step in config.pruning] == [
        ("llm", "loss", 6),
        ("whisper", "loss", 4),
    ]
    assert config.sources.of("llm").left_out_layers == config.left_out_layers("llm")


def test_the_file_has_the_published_keys_and_converts_back(folder: Path, golden: Path, tmp_path: Path) -> None:
    trained = folder / "run" / "final"
    assert main(["prune", "publish", str(trained), str(tmp_path / "nota.pth")]) == 0
    loaded = torch.load(tmp_path / "nota.pth", weights_only=True)
    expected = published.qformer_state(48, published.BEATS, 64)
    del expected["speech_Qformer.bert.embeddings.position_ids"]  # a buffer of BERT's that nothing reads
    prefix = f"llama_model.{published.PEFT}"
    expected |= published.lora_state(prefix, published.llm_targets(folder / "llm", range(4)))
    square = torch.zeros(48, 48)
    adapted = {f"layers.{i}.self_attn.{name}": square for i in range(3) for name in ("q_proj", "v_proj")}
    expected |= published.lora_state(f"speech_encoder.{published.PEFT}", adapted)
    assert {name: value.shape for name, value in loaded["model"].items()} == {
        name: value.shape for name, value in expected.items()
    }
    config = open_checkpoint(trained).config
    lists = {"pruned_layers": config.left_out_layers("llm"), "whisper_prune": config.left_out_layers("whisper")}
    assert {name: tuple(loaded[name]) for name in lists} == lists
    beats = golden / "beats" / "beats.pt"
    whisper, llm = folder / "whisper", folder / "llm"
    convert_salmonn(tmp_path / "nota.pth", tmp_path / "back", whisper=whisper, audio_encoder=beats, llm=llm)
    again, model = load(tmp_path / "back"), load(trained)
    assert again.config.qformer == model.config.qformer
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_what_the_layout_has_no_place_for_is_refused(folder: Path, golden_checkpoint: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out.pth", folder / "mine.json"
    with pytest.raises(ConfigError, match="NOTA-09 prunes Whisper with whisper_lora: True only"):
        write_published(folder / "pruned", out)
    options = PruneOptions({"audio_encoder": 0.33}, Plan("influence"), data=data)
    prune(folder / "run" / "final", tmp_path / "beats", options)
    with pytest.raises(ConfigError, match="goes without layers of its audio encoder"):
        write_published(tmp_path / "beats", out)
    prune(folder / "start", tmp_path / "merged", replace(options, shares={"llm": 0.3}, merge=True))
    with pytest.raises(ConfigError, match="stores llm, of which the published layout has no weights"):
        write_published(tmp_path / "merged", out)
    out.touch()
    with pytest.raises(CheckpointError, match="exists; choose another name"):
        write_published(golden_checkpoint, out)
