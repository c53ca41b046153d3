"""Whisper's linear layers as two thin ones: exact at full rank, the best there is below, and exported as such."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.__main__ import main
from salmonrun.training.checkpoint import load_whisper, open_checkpoint
from salmonrun.training.model.config import WhisperConfig
from salmonrun.training.model.whisper import build_whisper
from salmonrun.training.pruning import low_rank
from salmonrun.training.pruning.choose import Plan
from salmonrun.training.pruning.low_rank import ranks
from salmonrun.training.pruning.predict import cost
from salmonrun.training.pruning.prune import PruneOptions, prune
from tests.helpers.planted import plant

SIZES = WhisperConfig(d_model=64, layers=2, heads=2, ffn=128)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, whose activations have every direction."""
    folder = tmp_path_factory.mktemp("data")
    soundfile.write(folder / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal(24000), 16000)
    path = folder / "annotation.json"
    path.write_text(json.dumps({"annotation": [{"path": "noise.wav", "text": "nothing", "task": "asr"}]}))
    return path


@pytest.fixture(scope="module")
def thin(tiny_checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("thin") / "checkpoint"
    prune(tiny_checkpoint, out, PruneOptions({}, low_rank=0.5, data=data))
    return out


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with a layer more in Whisper and in the LLM, which changes nothing."""
    folder = tmp_path_factory.mktemp("planted") / "checkpoint"
    plant(Path(__file__).parents[2] / "demo" / "checkpoint", folder, {"llm": 2, "whisper": 3})
    return folder


def speech_data(speech: Path, folder: Path) -> Path:
    path = folder / "speech.json"
    path.write_text(json.dumps({"annotation": [{"path": str(speech), "text": "seven", "task": "asr"}]}))
    return path


def whisper_states(checkpoint: Path, log_mel: Tensor) -> Tensor:
    with torch.no_grad():
        return load_whisper(open_checkpoint(checkpoint))(log_mel)


def test_ranks_have_the_share_of_the_weights() -> None:
    found = ranks(SIZES, 0.5)
    assert found["layers.0.self_attn.q_proj"] == 16  # 16 (64 + 64) = 64 * 64 / 2
    assert found["layers.1.fc1"] == 21
    assert len(found) == 12
    with pytest.raises(ConfigError, match=r"at which layers\.0\.self_attn\.q_proj has no rank left"):
        ranks(SIZES, 0.01)


def test_at_full_rank_nothing_changes(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = dict.fromkeys(ranks(open_checkpoint(tiny_checkpoint).config.whisper, 0.5), 64)
    monkeypatch.setattr(low_rank, "ranks", lambda *_: full)
    pruned = prune(tiny_checkpoint, tmp_path / "out", PruneOptions({}, low_rank=0.5, data=data))
    log_mel = torch.randn(1, 80, 200, generator=torch.Generator().manual_seed(0))
    expected = whisper_states(tiny_checkpoint, log_mel)
    assert (whisper_states(tmp_path / "out", log_mel) - expected).abs().max() <= 1e-4
    assert min(pruned.explained.values()) == pytest.approx(1.0)


@torch.no_grad()
def test_no_other_matrix_of_that_rank_is_nearer(tiny_checkpoint: Path, thin: Path, data: Path) -> None:
    """On the recordings themselves, of the first layer, whose input is the same: against a truncated SVD of W."""
    before, after = (load_whisper(open_checkpoint(folder)) for folder in (tiny_checkpoint, thin))
    features = open_checkpoint(thin).config.front_end.features(load_audio(data.parent / "noise.wav"))
    first: Any = before.layers[0]
    x = first.self_attn_layer_norm(before.embed(features.log_mel[None]))
    for name in ("q_proj", "k_proj", "v_proj"):
        whole, found = (getattr(model.layers[0].self_attn, name) for model in (before, after))
        u, s, v = torch.linalg.svd(whole.weight)
        rank = found.down.out_features
        truncated = x @ (u[:, :rank] * s[:rank] @ v[:rank]).T + (0 if whole.bias is None else whole.bias)
        error, other = ((found(x) - whole(x)).pow(2).sum(), (truncated - whole(x)).pow(2).sum())
        assert error < 0.95 * other


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_is_exported_as_it_is(thin: Path, tiny_bundle: Path, speech: Path, tmp_path: Path, precision: str) -> None:
    """The export's own gate compares the graph with PyTorch; its weights are half."""
    options = ExportOptions(encoder_precision="int8" if precision == "int8" else "fp32", parity_budget=10)
    bundle = export_bundle(thin, tmp_path / "bundle", options)
    answer = Engine.load(bundle).generate(speech, task="asr", config=GenerationConfig(max_new_tokens=4))
    assert len(answer.token_ids) > 0
    if precision == "fp32":
        files = [folder / "whisper.onnx.data" for folder in (bundle, tiny_bundle)]
        saved = files[1].stat().st_size - files[0].stat().st_size
        assert saved > 4 * 0.45 * 2 * (4 * 64 * 64 + 2 * 64 * 128)
    steps = open_checkpoint(thin).config.pruning
    assert [(step.method, step.share, step.kept) for step in steps] == [("low-rank", 0.5, (0, 1))]
    assert "whisper: matrices of low rank, 50% of their weights" in (bundle / "README.md").read_text()


def test_layers_of_it_can_still_be_dropped(thin: Path, data: Path, tmp_path: Path) -> None:
    options = PruneOptions({"whisper": 0.5}, data=data)
    with pytest.raises(ConfigError, match="--protect 0"):
        prune(thin, tmp_path / "out", options)
    options = replace(options, plan=replace(options.plan, protect=0))
    prune(thin, tmp_path / "out", options)
    whisper = open_checkpoint(tmp_path / "out").config.whisper
    assert whisper.layers == 1
    assert set(whisper.ranks or {}) == set(ranks(WhisperConfig(64, 1, 2, 128), 0.5))
    load_whisper(open_checkpoint(tmp_path / "out"))
    with pytest.raises(ConfigError, match="are of low rank here: prune before"):
        prune(thin, tmp_path / "merged", replace(options, merge=True))
    with pytest.raises(ConfigError, match="are of low rank already"):
        prune(thin, tmp_path / "again", PruneOptions({}, low_rank=0.5, data=data))


def test_depth_and_rank_in_one_go_are_those_one_after_the_other(planted: Path, speech: Path, tmp_path: Path) -> None:
    """Layers first, and the ranks are of what is left: the recordings are heard without the layers that are gone."""
    one = speech_data(speech, tmp_path)
    plan = Plan("influence")
    depth = PruneOptions({"whisper": 0.2, "llm": 0.2}, plan, data=one)
    both = prune(planted, tmp_path / "both", replace(depth, low_rank=0.5))
    prune(planted, tmp_path / "first", depth)
    second = prune(tmp_path / "first", tmp_path / "second", PruneOptions({}, low_rank=0.5, data=one))
    assert both.gone == {"llm": (2,), "whisper": (3,)}
    assert both.explained == second.explained
    found, expected = open_checkpoint(tmp_path / "both"), open_checkpoint(tmp_path / "second")
    assert found.config.whisper == expected.config.whisper
    assert found.config.whisper.layers == 4
    assert set(found.config.whisper.ranks or {}) == set(both.explained)
    for part, tensors in expected.parts.items():
        assert set(found.parts[part]) == set(tensors)
        assert all(torch.equal(found.parts[part][name](), get()) for name, get in tensors.items())
    steps = [(step.part, step.method, step.left_out) for step in found.config.pruning]
    assert steps == [("llm", "dropped", (2,)), ("whisper", "dropped", (3,)), ("whisper", "low-rank", (3,))]
    bundle = export_bundle(tmp_path / "both", tmp_path / "bundle", ExportOptions(encoder_precision="int8"))
    manifest = open_bundle(bundle).manifest
    assert manifest.provenance.whisper_pruned_layers == (3,)
    assert manifest.llm.layers == 4
    assert Engine.load(bundle).generate(speech, config=GenerationConfig(max_new_tokens=4)).token_ids


def test_the_command(tiny_checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    given = ["prune", "apply", str(tiny_checkpoint), out, "--low-rank", "whisper=0.5"]
    assert main([*given, "--dry-run"]) == 0
    predicted = capsys.readouterr().out.splitlines()[:-1]
    assert main(given) == 1
    assert "--data ANNOTATION" in capsys.readouterr().err
    assert main([*given, "--data", str(data)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("whisper: 12 linear layers of low rank keep ")
    assert printed[1:-1] == predicted
    stored = sum(parameter.numel() for parameter in load_whisper(open_checkpoint(out)).parameters())
    assert cost(open_checkpoint(out).config).parts["whisper"].parameters == stored
    with pytest.raises(SystemExit):
        main([*given[:-1], "llm=0.5"])
    assert "'llm=0.5' is not whisper=SHARE" in capsys.readouterr().err


def test_ranks_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"ranks has 0 for layers\.0\.fc1"):
        WhisperConfig(64, 2, 2, 128, ranks={"layers.0.fc1": 0})
    with pytest.raises(CheckpointError, match=r"whisper\.ranks has 'layers\.9\.fc1'; linear layers here are layers\.0"):
        build_whisper(WhisperConfig(64, 2, 2, 128, ranks={"layers.9.fc1": 4}), None)
    with pytest.raises(ConfigError, match="low_rank is 1; expected the share"):
        PruneOptions({}, low_rank=1.0)
