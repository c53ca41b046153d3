"""Pruning of EAT and of mixtures of experts, and how often what is measured."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import ConfigError
from salmonrun.training.checkpoint import load, open_checkpoint
from salmonrun.training.model.config import LoraConfig
from salmonrun.training.pruning import choose as choose_module
from salmonrun.training.pruning import sensitivity as sensitivity_module
from salmonrun.training.pruning.calibration import Calibration
from salmonrun.training.pruning.choose import Plan
from salmonrun.training.pruning.layers import without
from salmonrun.training.pruning.observe import observe
from salmonrun.training.pruning.prune import PruneOptions, prune
from salmonrun.training.pruning.sensitivity import CRITERIA, Criterion
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from tests.helpers.encoders import EAT

TINY = preset("tiny")
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
}


@pytest.fixture(scope="module")
def with_eat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eat") / "checkpoint"
    init_checkpoint(replace(TINY, audio_encoder=replace(EAT, layers=4)), folder)
    return folder


@pytest.fixture(scope="module")
def with_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts") / "checkpoint"
    llm = TINY.llm | EXPERTS | {"model_type": "qwen3_moe", "num_hidden_layers": 4}
    init_checkpoint(replace(TINY, llm=llm, lora=LoraConfig()), folder)
    return folder


@pytest.fixture
def data(speech: Path, tmp_path: Path) -> Path:
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps({"annotation": [{"path": str(speech), "text": "seven", "task": "asr"}]}))
    return path


@pytest.mark.parametrize("criterion", ["loss", "taylor"])
def test_eat_without_a_layer_is_the_whole_one_with_it_passed_by(
    with_eat: Path, data: Path, speech: Path, tmp_path: Path, criterion: Criterion
) -> None:
    options = PruneOptions({"audio_encoder": 0.25}, Plan(criterion), data=data)
    (gone,) = prune(with_eat, tmp_path / "out", options).gone["audio_encoder"]
    assert gone in (1, 2)
    whole, pruned = load(with_eat), load(tmp_path / "out")
    with torch.no_grad(), without(whole, {"audio_encoder": {gone}}):
        expected = whole.encode(whole.load_audio(speech))
        found = pruned.encode(pruned.load_audio(speech))
    assert pruned.audio_encoder is not None
    assert len(list(pruned.audio_encoder.get_submodule("blocks").children())) == 3
    assert torch.allclose(found, expected, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(found, whole.encode(whole.load_audio(speech)), atol=1e-3)
    if criterion == "loss":
        bundle = export_bundle(tmp_path / "out", tmp_path / "bundle", ExportOptions(encoder_precision="int8"))
        (step,) = open_bundle(bundle).manifest.provenance.pruning
        assert (step.part, step.left_out) == ("audio_encoder", (gone,))
        assert Engine.load(bundle).generate(speech, config=GenerationConfig(max_new_tokens=4)).token_ids


def test_layers_of_experts_are_dropped_but_not_merged(
    with_experts: Path, data: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PruneOptions({"llm": 0.25}, Plan("influence"), data=data)
    (gone,) = prune(with_experts, tmp_path / "out", options).gone["llm"]
    before, after = open_checkpoint(with_experts), open_checkpoint(tmp_path / "out")
    for expert in range(4):
        name = f"mlp.experts.{expert}.down_proj.weight"
        behind = before.parts["llm"][f"model.layers.{gone + 1}.{name}"]()
        assert torch.equal(after.parts["llm"][f"model.layers.{gone}.{name}"](), behind)
    bundle = export_bundle(tmp_path / "out", tmp_path / "bundle", ExportOptions(llm_precision="int8"))
    assert Engine.load(bundle).generate(speech, config=GenerationConfig(max_new_tokens=4)).token_ids
    calls: list[object] = []
    monkeypatch.setattr(Calibration, "losses", lambda *arguments: calls.append(arguments))
    with pytest.raises(ConfigError, match=r"'qwen3_moe' are mixtures of experts: .* Leave out --merge"):
        prune(with_experts, tmp_path / "merged", replace(options, plan=Plan("loss"), merge=True))
    assert not calls  # it is refused before anything is measured
    assert not (tmp_path / "merged").exists()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the recordings were gone through: for losses, and to look into the layers."""
    found = {"losses": 0, "observe": 0}

    def count(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            found[name] += 1
            return function(*arguments, **options)

        return counting

    monkeypatch.setattr(Calibration, "losses", count("losses", Calibration.losses))
    monkeypatch.setattr(sensitivity_module, "observe", count("observe", observe))
    assert not hasattr(choose_module, "observe")  # or it would not be counted
    return found


@pytest.mark.parametrize("criterion", CRITERIA)
def test_nothing_is_measured_that_the_search_does_not_need(
    with_eat: Path, data: Path, tmp_path: Path, counted: dict[str, int], criterion: Criterion
) -> None:
    """Two of four layers of EAT go, the ends are protected: greedy has two layers to compare, and then one."""
    by_loss = criterion in ("loss", "perplexity")
    expected = {
        "one-shot": {"losses": 2, "observe": 0} if by_loss else {"losses": 0, "observe": 1},
        "greedy": {"losses": 3, "observe": 0} if by_loss else {"losses": 0, "observe": 2},
        "contiguous": {"losses": 1, "observe": 0} if by_loss else {"losses": 0, "observe": 1},
    }
    for search, passes in expected.items():
        counted.update(losses=0, observe=0)
        plan = Plan(criterion, search)  # type: ignore[arg-type]
        options = PruneOptions({"audio_encoder": 0.5}, plan, data=data)
        assert prune(with_eat, tmp_path / search, options).gone == {"audio_encoder": (1, 2)}
        assert counted == passes, search
