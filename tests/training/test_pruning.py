"""Pruning: what is measured of layers, which of them go, and that what is left is the model without them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.config import Pruning
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.__main__ import main
from salmonrun.training.checkpoint import load, open_checkpoint
from salmonrun.training.commands import prune as command
from salmonrun.training.data.config import DataConfig, DataSet
from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.recipe import Recipe, RunConfig, TrainedParts
from salmonrun.training.inspection.inspect import inspect_path
from salmonrun.training.model.config import LoraConfig
from salmonrun.training.model.salmonn import SalmonnModel
from salmonrun.training.pruning import sensitivity as sensitivity_module
from salmonrun.training.pruning.calibration import Calibration, read_calibration, score
from salmonrun.training.pruning.choose import SEARCHES, Plan, Search, count_to_go
from salmonrun.training.pruning.layers import PARTS, Gone, Part, layers_of, without
from salmonrun.training.pruning.predict import cost
from salmonrun.training.pruning.prune import PruneOptions, prune
from salmonrun.training.pruning.sensitivity import (
    CRITERIA,
    JOURNAL,
    RESULT,
    Criterion,
    measure_sensitivity,
    read_sensitivity,
)
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from tests.helpers.kernels import BUILT
from tests.helpers.planted import plant

DecoderChoice = Literal["onnx", "native"]
DEMO = Path(__file__).parents[2] / "demo"
PLANTED: dict[str, int] = {"llm": 2, "whisper": 3, "audio_encoder": 1}
SHORT = GenerationConfig(max_new_tokens=12)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "checkpoint"
    plant(DEMO / "checkpoint", folder, PLANTED)
    return folder


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sounds and a question: of speech the demo understands as much without BEATs."""
    annotation = json.loads((DEMO / "recordings" / "annotation.json").read_text())["annotation"]
    chosen = [entry for entry in annotation if entry["task"] != "asr"][1:4]
    path = tmp_path_factory.mktemp("heard") / "annotation.json"
    for entry in chosen:
        entry["path"] = str(DEMO / "recordings" / entry["path"])
    path.write_text(json.dumps({"annotation": chosen}))
    return path


@pytest.fixture(scope="module")
def measured(planted: Path, heard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured") / "sensitivity"
    measure_sensitivity(planted, heard, out)
    return out


@pytest.fixture(scope="module")
def pruned(planted: Path, measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a fifth of the LLM and of Whisper, and a third of BEATs: the planted layers."""
    out = tmp_path_factory.mktemp("pruned") / "checkpoint"
    prune(planted, out, PruneOptions({"llm": 0.2, "whisper": 0.2, "audio_encoder": 0.33}, measured=measured))
    return out


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers a part, of random weights, with adapters on the LLM and on Whisper."""
    tiny = preset("tiny")
    assert tiny.audio_encoder
    config = replace(
        tiny,
        whisper=replace(tiny.whisper, layers=4),
        audio_encoder=replace(tiny.audio_encoder, layers=4),
        llm=tiny.llm | {"num_hidden_layers": 4},
        lora=LoraConfig(),
        whisper_lora=LoraConfig(r=4),
    )
    folder = tmp_path_factory.mktemp("adapted") / "checkpoint"
    init_checkpoint(config, folder)
    return folder


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("part", PARTS)
def test_a_layer_that_does_nothing_is_found_first(measured: Path, part: Part, criterion: Criterion) -> None:
    scores = read_sensitivity(measured).parts[part].of(criterion)
    assert len(scores) == 3 if part == "audio_encoder" else 5
    assert min(range(len(scores)), key=lambda layer: scores[layer]) == PLANTED[part]


@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_finds_it(planted: Path, measured: Path, heard: Path, tmp_path: Path, search: Search) -> None:
    data = None if search == "one-shot" else heard
    known = None if search == "greedy" else measured
    plan = Plan("influence" if search == "greedy" else "loss", search)
    options = PruneOptions({"whisper": 0.2}, plan, measured=known, data=data, limit=2)
    assert prune(planted, tmp_path / "out", options).gone == {"whisper": (PLANTED["whisper"],)}
    (step,) = open_checkpoint(tmp_path / "out").config.pruning
    assert (step.search, step.criterion, step.left_out) == (search, plan.criterion, (PLANTED["whisper"],))


def test_greedy_measures_what_is_left(planted: Path, heard: Path, tmp_path: Path) -> None:
    """The second layer to go is the one that the model without the first needs least."""
    options = PruneOptions({"llm": 0.4}, Plan("loss", "greedy"), data=heard, limit=1)
    (gone,) = prune(planted, tmp_path / "out", options).gone.values()
    calibration = calibrated(planted, heard, tmp_path / "features", 1)
    losses = {i: score(calibration.losses({"llm": {PLANTED["llm"], i}})).loss for i in (1, 3)}
    assert gone == tuple(sorted((PLANTED["llm"], min(losses, key=lambda i: losses[i]))))


def test_runs_are_what_lies_between_their_ends(measured: Path) -> None:
    part = read_sensitivity(measured).parts["llm"]
    assert [len(runs) for runs in part.angular] == [5, 4, 3, 2, 1]
    assert part.angular[1][PLANTED["llm"]] == pytest.approx(part.angular[0][PLANTED["llm"] + 1], abs=1e-5)
    assert part.influence[1][PLANTED["llm"]] == pytest.approx(part.influence[0][PLANTED["llm"] + 1], abs=1e-9)


def calibrated(checkpoint: Path, annotation: Path, folder: Path, limit: int | None = None) -> Calibration:
    model = load(checkpoint)
    calibration = Calibration(model, read_calibration(annotation, model, limit), folder)
    calibration.settle({})
    return calibration


def test_losses_are_those_of_training(planted: Path, heard: Path, tmp_path: Path) -> None:
    """Kept states and recordings by themselves change nothing; an encoder that is told to hear less is run."""
    calibration = calibrated(planted, heard, tmp_path)
    model, entries = calibration.model, calibration.entries
    cases: tuple[Gone, ...] = ({}, {"whisper": {1}}, {"audio_encoder": {0}, "llm": {1}})
    for gone in cases:
        with torch.no_grad(), without(model, gone):
            audios = [model.load_audio(entry.path) for entry in entries]
            targets = [calibration.target(entry) for entry in entries]
            prompts = [calibration.prompt(entry) for entry in entries]
            expected = model.answer_loss(model.encode_batch(audios), prompts, targets).item()
        assert sum(one.nats for one in calibration.losses(gone)) == pytest.approx(expected, rel=1e-3)


def test_the_llm_is_measured_without_running_encoders(planted: Path, heard: Path, tmp_path: Path) -> None:
    calibration = calibrated(planted, heard, tmp_path, 2)
    calls: list[str] = []
    for part in ("whisper", "audio_encoder"):
        encoder = getattr(calibration.model, part)
        encoder.register_forward_pre_hook(lambda *_, part=part: calls.append(part))
    calibration.losses({"llm": {1}})
    assert calls == []
    calibration.losses({"whisper": {1}})
    assert calls == ["whisper"] * 2


@pytest.mark.parametrize("cut", [0, 3, 9])
def test_a_killed_run_goes_on_to_the_same_result(
    planted: Path, heard: Path, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    whole = measure_sensitivity(planted, heard, tmp_path / "whole", limit=1, parts=("llm", "whisper"))
    real, left = sensitivity_module._measured, iter(range(cut))

    def killed(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    out = tmp_path / "cut"
    monkeypatch.setattr(sensitivity_module, "_measured", killed)
    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(planted, heard, out, limit=1, parts=("llm", "whisper"))
    assert not (out / RESULT).exists()
    with (out / JOURNAL).open("a") as file:
        file.write('{"part": "whi')  # a line that the kill cut
    calls: list[object] = []
    monkeypatch.setattr(sensitivity_module, "_measured", counted(real, calls))
    assert measure_sensitivity(planted, heard, out, limit=1, parts=("llm", "whisper")) == whole
    assert len(calls) == 1 + 6 + 6 - cut
    assert (out / RESULT).read_bytes() == (tmp_path / "whole" / RESULT).read_bytes()


def counted(function: Callable[..., Any], calls: list[object]) -> Callable[..., Any]:
    return lambda *arguments: calls.append(arguments) or function(*arguments)


def test_another_checkpoint_or_data_is_not_mixed_in(
    planted: Path, measured: Path, heard: Path, adapted: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="was made with data sha256"):
        measure_sensitivity(planted, heard, measured, limit=1)
    with pytest.raises(CheckpointError, match="was measured on another checkpoint"):
        prune(adapted, tmp_path / "out", PruneOptions({"llm": 0.25}, measured=measured))
    with pytest.raises(CheckpointError, match="expected what `salmonrun prune sensitivity` writes"):
        read_sensitivity(heard)


@torch.inference_mode()
def logits(model: SalmonnModel, speech: Path, gone: dict[Part, set[int]]) -> torch.Tensor:
    with without(model, gone):
        embeds = model.embed_prompt(model.encode(model.load_audio(speech)), "What is heard?")
        return model.llm(inputs_embeds=embeds).logits


@pytest.mark.parametrize("kind", ["stored", "referred to"])
def test_a_pruned_model_is_the_whole_one_with_layers_passed_by(
    adapted: Path, golden_checkpoint: Path, speech: Path, tmp_path: Path, kind: str
) -> None:
    """Adapters go with their layers, BEATs' residuals keep their weight, and files that are referred to stay."""
    checkpoint = adapted if kind == "stored" else golden_checkpoint
    config = open_checkpoint(checkpoint).config
    assert config.audio_encoder
    counts: dict[Part, int] = {
        "llm": config.llm["num_hidden_layers"],
        "whisper": config.whisper.layers,
        "audio_encoder": config.audio_encoder.layers,
    }
    shares: dict[Part, float] = {part: 1 / count for part, count in counts.items()}
    options = PruneOptions(shares, Plan("influence", protect=0), data=entry(speech, tmp_path))
    gone = prune(checkpoint, tmp_path / "out", options).gone
    assert [len(layers) for layers in gone.values()] == [1, 1, 1]
    whole = load(checkpoint)
    expected = logits(whole, speech, {part: set(layers) for part, layers in gone.items()})
    assert (logits(load(tmp_path / "out"), speech, {}) - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert not torch.allclose(logits(whole, speech, {}), expected, rtol=0.01)
    after = open_checkpoint(tmp_path / "out").config
    if kind == "referred to":
        assert {part: source.left_out_layers for part, source in after.sources.items()} == gone


def entry(speech: Path, folder: Path) -> Path:
    path = folder / "one.json"
    path.write_text(json.dumps({"annotation": [{"path": str(speech), "text": "four two", "task": "asr"}]}))
    return path


def test_pruned_twice_the_numbers_are_still_those_of_the_whole_model(
    adapted: Path, speech: Path, tmp_path: Path
) -> None:
    options = PruneOptions({"llm": 0.26}, Plan("influence"), data=entry(speech, tmp_path))
    first = prune(adapted, tmp_path / "once", options)
    (one,) = first.gone["llm"]
    second = prune(tmp_path / "once", tmp_path / "twice", replace(options, shares={"llm": 0.34}))
    config = open_checkpoint(tmp_path / "twice").config
    assert one in (1, 2)
    assert second.gone == {"llm": (1,)}
    assert [step.kept for step in config.pruning] == [(0, 3 - one, 3), (0, 3)]
    assert config.pruning[1].source == open_checkpoint(tmp_path / "once").sha256()


def test_merged_layers_are_the_mean_of_what_they_computed_with(adapted: Path, speech: Path, tmp_path: Path) -> None:
    options = PruneOptions({"llm": 0.5, "whisper": 0.25}, Plan("influence"), merge=True, data=entry(speech, tmp_path))
    gone = prune(adapted, tmp_path / "out", options).gone
    assert gone["llm"] == (1, 2)
    before, after = open_checkpoint(adapted), open_checkpoint(tmp_path / "out")
    name = "self_attn.q_proj.weight"
    mean = sum(before.merged_llm()[f"model.layers.{i}.{name}"]() for i in (0, 1, 2)) / 3
    assert torch.allclose(after.merged_llm()[f"model.layers.0.{name}"](), torch.as_tensor(mean), atol=1e-6)
    last = before.parts["lora"]["model.layers.3.self_attn.q_proj.B"]()
    assert torch.equal(after.parts["lora"]["model.layers.1.self_attn.q_proj.B"](), last)
    assert not after.parts["lora"]["model.layers.0.self_attn.q_proj.B"]().any()
    kept, (dropped,) = f"layers.{gone['whisper'][0] - 1}.fc1.weight", gone["whisper"]
    both = before.parts["whisper"][kept]() + before.parts["whisper"][f"layers.{dropped}.fc1.weight"]()
    assert torch.allclose(after.parts["whisper"][kept](), both / 2, atol=1e-6)
    assert [step.method for step in after.config.pruning] == ["merged", "merged"]
    load(tmp_path / "out")


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_bundle_of_it_runs_at_the_new_depth_and_says_where_it_comes_from(
    pruned: Path, tmp_path: Path, precision: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    decoders: tuple[DecoderChoice, ...] = ("onnx", "native") if BUILT and precision == "int4" else ("onnx",)
    export_bundle(pruned, tmp_path / "bundle", ExportOptions(llm_precision=precision))
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.llm.layers, len(manifest.llm.windows)) == (4, 4)
    assert sum(spec.name.startswith("past_key") for spec in manifest.graphs["llm"].past) == 4
    steps = open_checkpoint(pruned).config.pruning
    assert manifest.provenance.pruning == steps
    assert manifest.provenance.pruned_layers == (PLANTED["llm"],)
    assert manifest.provenance.whisper_pruned_layers == (PLANTED["whisper"],)
    card = (tmp_path / "bundle" / "README.md").read_text()
    for i, step in enumerate(steps, 1):
        assert f"- {step.part}: {step}.\n" in card
        assert inspect_path(tmp_path / "bundle").facts[f"pruning, step {i}"] == f"{step.part}: {step}"
        assert inspect_path(pruned).facts[f"pruning, step {i}"] == f"{step.part}: {step}"
    audio = DEMO / "recordings" / "digits.flac"
    model = load(DEMO / "checkpoint")
    expected = model.tokenizer.decode(model.generate(audio, task="asr", config=SHORT))
    for decoder in decoders:
        engine = Engine.load(tmp_path / "bundle", decoder=decoder)
        assert engine.generate(audio, task="asr", config=SHORT).text.strip() == expected.strip()


def test_it_can_be_trained_on_and_evaluated(pruned: Path, heard: Path, tmp_path: Path) -> None:
    data = DataConfig(train=(DataSet(str(heard)),))
    run = RunConfig(out=str(tmp_path / "run"), steps=1, batch_size=2, warmup_steps=0)
    final = finetune(Recipe(str(pruned), data, run, TrainedParts(whisper=True, llm=True)))
    before, after = open_checkpoint(pruned), open_checkpoint(final)
    assert after.config.pruning == before.config.pruning
    name = "layers.3.fc1.weight"
    assert not torch.equal(after.parts["whisper"][name](), before.parts["whisper"][name]())
    given = ["evaluate", str(final), str(heard), "--out", str(tmp_path / "out.jsonl"), "--limit", "1"]
    assert main([*given, "--device", "cpu"]) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_a_bundle_that_is_not_pruned_does_not_mention_it(tiny_bundle: Path) -> None:
    """Readers that do not know the key read it."""
    provenance = json.loads((tiny_bundle / "bundle.json").read_text())["provenance"]
    assert "pruning" not in provenance
    assert "made smaller" not in (tiny_bundle / "README.md").read_text()


def test_a_dry_run_predicts_what_is_written(
    planted: Path, pruned: Path, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = ["--llm", "0.2", "--whisper", "0.2", "--audio-encoder", "0.33"]
    assert main(["prune", "apply", str(planted), str(tmp_path / "out"), *shares, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert "nothing was written" in printed
    stored = sum(parameter.numel() for parameter in load(pruned).parameters())
    positions = load(pruned).config.whisper
    assert cost(load(pruned).config).parameters == stored
    assert f"{stored / 1e6:,.4g}" in printed
    assert positions.layers == 4


@pytest.mark.parametrize(
    ("layers", "share", "protect", "expected"), [(28, 0.3, 1, 8), (32, 0.3, 1, 10), (4, 0.25, 1, 1), (2, 0.5, 0, 1)]
)
def test_shares(layers: int, share: float, protect: int, expected: int) -> None:
    """30 % of Llama-3.2-3B are 8 of 28 layers, of Whisper large-v2 10 of 32."""
    assert count_to_go("llm", layers, share, protect) == expected


@pytest.mark.parametrize(
    ("layers", "share", "protect", "message"),
    [
        (4, 1.0, 1, "llm is 1; expected the share"),
        (4, 0.1, 1, r"llm is 0.1; that is none of 4 layers: one is 0.25"),
        (2, 0.5, 1, r"1 of 2 layers, but 1 at each end are protected, which leaves 0; .*--protect 0"),
    ],
)
def test_shares_that_cannot_be(layers: int, share: float, protect: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        count_to_go("llm", layers, share, protect)


def test_what_cannot_be_done_is_said_before_anything_is_measured(
    planted: Path, measured: Path, heard: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for options, message in (
        (PruneOptions({"llm": 0.2}), "nothing was measured: give recordings"),
        (PruneOptions({"llm": 0.2}, Plan(search="greedy"), measured=measured), "search is 'greedy', which measures"),
        (
            PruneOptions({"llm": 0.4}, Plan(search="contiguous"), measured=measured),
            "criterion is 'loss', which of runs",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            prune(planted, out, options)
    with pytest.raises(ConfigError, match="nothing is to be left out"):
        PruneOptions({})
    with pytest.raises(ConfigError, match="protect is -1"):
        Plan(protect=-1)
    with pytest.raises(CheckpointError, match="exists; choose another name"):
        prune(planted, planted, PruneOptions({"llm": 0.2}, measured=measured))
    with pytest.raises(ConfigError, match="limit is 0"):
        prune(planted, out, PruneOptions({"llm": 0.2}, data=heard, limit=0))
    assert not out.exists()


def test_the_commands(planted: Path, heard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sensitivity"
    given = ["--data", str(heard), "--out", str(out), "--limit", "1", "--part", "llm"]
    assert main(["prune", "sensitivity", str(planted), *given]) == 0
    printed = capsys.readouterr().out
    assert f"least needed by influence: {PLANTED['llm']}" in printed
    assert (out / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    given = ["--llm", "0.2", "--criterion", "angular", "--measured", str(out)]
    assert main(["prune", "apply", str(planted), str(tmp_path / "pruned"), *given]) == 0
    assert f"llm: without layers {PLANTED['llm']}" in capsys.readouterr().out
    assert layers_of(load(tmp_path / "pruned"), "llm").__len__() == 4


def test_the_command_line_offers_what_there_is() -> None:
    assert command.PARTS == PARTS
    assert command.CRITERIA == CRITERIA
    assert command.SEARCHES == SEARCHES


def test_a_lineage_that_cannot_be_is_refused() -> None:
    for kept in ((), (1, 0), (0, 4), (0, 0)):
        with pytest.raises(ConfigError, match="expected ascending numbers of 4 layers"):
            Pruning("llm", "dropped", "tool", "0", 4, kept)
