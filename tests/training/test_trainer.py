"""What our Trainer adds: validation and the best checkpoint, clipping, the log, and several processes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.runtime.schema import to_dict
from salmonrun.training.checkpoint import load
from salmonrun.training.data.annotation import read_annotation
from salmonrun.training.data.config import DataConfig, DataSet
from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.objective import TrainedModel
from salmonrun.training.finetuning.optimizer import make_optimizer, make_scheduler
from salmonrun.training.finetuning.parts import choose_parts
from salmonrun.training.finetuning.recipe import Recipe, RunConfig, TrainedParts
from salmonrun.training.finetuning.trainer import load_trained
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from tests.helpers.losses import Answer, mean_loss
from tests.helpers.runs import logged, write_noises

EVERYTHING = TrainedParts(whisper=True, audio_encoder=True, qformer=True, llm=True)
TEXTS = ("one", "two three", "four", "five six seven")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = preset("tiny")
    folder = tmp_path_factory.mktemp("start") / "checkpoint"
    init_checkpoint(replace(config, audio=replace(config.audio, window="trimmed", min_s=0.5)), folder, fresh=True)
    return folder


@pytest.fixture(scope="module")
def annotation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noises(tmp_path_factory.mktemp("data"), TEXTS)


def recipe(checkpoint: Path, annotation: Path, out: Path, **run: object) -> Recipe:
    settings = {"steps": 4, "batch_size": 2, "lr": 1e-3, "warmup_steps": 1, "log_every": 1, "save_every": 1, **run}
    measured = () if run.get("answer_weight") == 0 else (DataSet(str(annotation)),)
    data = DataConfig((DataSet(str(annotation)),), valid=measured)
    return Recipe(str(checkpoint), data, RunConfig(str(out), **settings), EVERYTHING)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in load(folder).named_parameters()}


def loss_of(folder: Path, annotation: Path) -> float:
    model = load(folder)
    prompt = model.prompts.tasks["asr"][0]
    entries, _ = read_annotation(annotation)
    with torch.inference_mode():
        return mean_loss(model, [Answer(model.load_audio(e.path), prompt, e.text) for e in entries]).item()


def test_the_best_checkpoint_is_kept_beside_the_last(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    finetune(recipe(checkpoint, annotation, out, steps=3, lr=0.3, min_lr=0.3))  # far too fast: the loss rises
    measured = logged(out, 3, "eval_loss")
    assert len(measured) == 3
    best = min(range(3), key=lambda i: measured[i])
    assert best != 2, "the run must get worse, or this tests nothing"
    assert loss_of(out / "best", annotation) == pytest.approx(measured[best], rel=1e-4)
    assert loss_of(out / "final", annotation) == pytest.approx(measured[2], rel=1e-4)


def test_accuracy_is_the_share_of_right_tokens(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    finetune(recipe(checkpoint, annotation, out, steps=1, metric="accuracy"))
    model = load(out / "final")
    right = tokens = 0
    for entry in read_annotation(annotation)[0]:
        target = model.tokenizer.encode(entry.text + model.prompts.end_symbol)
        embeds = model.embed_prompt(model.encode(model.load_audio(entry.path)), model.prompts.tasks["asr"][0])
        with torch.inference_mode():
            logits = model.llm(inputs_embeds=torch.cat([embeds, model.embed_tokens(target)], dim=1)).logits[0]
        right += sum(int(logits[embeds.shape[1] - 1 + i].argmax()) == token for i, token in enumerate(target))
        tokens += len(target)
    assert logged(out, 1, "eval_accuracy") == [pytest.approx(right / tokens)]


def test_answers_are_scored_if_the_metric_asks_for_it(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    finetune(recipe(checkpoint, annotation, out, steps=1, metric="wer", answered=2))
    (wer,), (exact,) = logged(out, 1, "eval_wer"), logged(out, 1, "eval_exact")
    assert wer >= 0
    assert exact in (0.0, 0.5, 1.0)


def test_validation_does_not_change_the_training(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    measured = recipe(checkpoint, annotation, tmp_path / "measured")
    finetune(measured)
    finetune(
        replace(
            measured,
            data=replace(measured.data, valid=()),
            run=replace(measured.run, out=str(tmp_path / "plain")),
        )
    )
    assert logged(tmp_path / "measured", 4, "loss") == logged(tmp_path / "plain", 4, "loss")
    assert not (tmp_path / "plain" / "best").exists()


def test_the_log_tells_the_losses_apart(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    finetune(recipe(checkpoint, annotation, out, steps=1, batch_size=4, ctc_weight=0.5))
    (loss,), (answers,), (characters,) = (logged(out, 1, name) for name in ("loss", "answer_loss", "ctc_loss"))
    model = load(checkpoint)
    tokens = sum(len(model.tokenizer.encode(text + model.prompts.end_symbol)) for text in TEXTS)
    assert loss == pytest.approx(answers + 0.5 * characters * sum(map(len, TEXTS)) / tokens, rel=1e-4)


def test_the_auxiliary_loss_alone_trains_whisper_alone(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    finetune(recipe(checkpoint, annotation, tmp_path / "run", steps=2, answer_weight=0.0, ctc_weight=1.0))
    start, end = (dict(load(folder).named_parameters()) for folder in (checkpoint, tmp_path / "run" / "final"))
    changed = {name.split(".")[0] for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"whisper"}
    assert logged(tmp_path / "run", 2, "answer_loss") == []


def test_no_loss_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="no loss to train on"):
        Recipe("start", DataConfig((DataSet("a"),)), RunConfig("out", answer_weight=0.0))


def test_clipping_by_a_percentile_survives_resuming(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finetune(recipe(checkpoint, annotation, whole, clip_percentile=10.0))
    norms = logged(whole, 4, "grad_norm")
    assert json.loads((whole / "checkpoint-4" / "gradient_norms.json").read_text()) == pytest.approx(norms)
    cut.mkdir()
    shutil.copytree(whole / "checkpoint-3", cut / "checkpoint-3")
    finetune(recipe(checkpoint, annotation, cut, clip_percentile=10.0), resume=True)
    assert logged(cut, 4, "loss") == pytest.approx(logged(whole, 4, "loss"), abs=1e-6)
    assert logged(cut, 4, "grad_norm") == pytest.approx(norms, rel=1e-4)
    finetune(recipe(checkpoint, annotation, tmp_path / "fixed", max_grad_norm=1e-3))
    assert logged(tmp_path / "fixed", 4, "loss") != logged(whole, 4, "loss")


def test_gradients_are_shortened_to_the_percentile(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    from salmonrun.training.finetuning.trainer import RecipeTrainer

    seen: list[float] = []

    class Spy(RecipeTrainer):
        def _clip_grad_norm(self, model: torch.nn.Module) -> object:
            norm = super()._clip_grad_norm(model)
            grads = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            seen.append(float(torch.stack(grads).norm()))
            return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("salmonrun.training.finetuning.finetune.RecipeTrainer", Spy)
        finetune(recipe(checkpoint, annotation, tmp_path / "run", clip_percentile=25.0))
    norms = logged(tmp_path / "run", 4, "grad_norm")
    expected = [min(norms[i], np.percentile(norms[: i + 1], 25.0)) for i in range(4)]
    assert seen == pytest.approx(expected, rel=1e-3)


def test_tensorboard_has_the_curves(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    finetune(recipe(checkpoint, annotation, tmp_path / "run", steps=2, tensorboard=True))
    (folder,) = (tmp_path / "run" / "runs").iterdir()
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert {"train/loss", "train/answer_loss", "eval/loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]


def test_only_the_tasks_asked_for_are_drawn(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    run = recipe(checkpoint, annotation, tmp_path / "run")
    captions = DataConfig((DataSet(str(annotation), tasks=("caption",)),))
    with pytest.raises(CheckpointError, match=r"annotation\.json has no entry of \('caption',\); its tasks are asr"):
        finetune(replace(run, data=captions))


LOSSES: dict[str, dict[str, float]] = {
    "answers": {"ctc_weight": 0.2},
    "auxiliary": {"answer_weight": 0, "ctc_weight": 1.0},
}


@pytest.mark.tools
def test_two_processes_train_as_one_with_the_double_batch(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    """Both kinds of losses in one launch: to start it takes longer than to train."""
    configs = [str(tmp_path / f"{kind}.yaml") for kind in LOSSES]
    for kind, config in zip(LOSSES, configs, strict=True):
        one = recipe(
            checkpoint, annotation, tmp_path / kind / "one", steps=3, batch_size=4, save_every=3, **LOSSES[kind]
        )
        two = replace(one, run=replace(one.run, out=str(tmp_path / kind / "two"), batch_size=2))
        finetune(one)
        finetune(replace(two, run=replace(two.run, out=str(tmp_path / kind / "halves"), accumulate=2)))
        Path(config).write_text(yaml.safe_dump(to_dict(two)))
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launched, "-m", "tests.helpers.finetune_each", *configs],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(": trained; salmonrun export ") == len(LOSSES)  # though both of them know it
    assert "it/s" not in done.stderr  # no bars where there is no terminal
    for kind in LOSSES:
        alone, both, halves = (partial(logged, tmp_path / kind / name, 3) for name in ("one", "two", "halves"))
        for term in ("answer_loss", "ctc_loss"):  # of the halves that the two processes had, and not of one of them
            assert both(term) == pytest.approx(halves(term), abs=2e-3)
        assert both("loss") == pytest.approx(alone("loss"), abs=2e-4)
        assert both("eval_loss") == pytest.approx(alone("eval_loss"), abs=2e-3)
        assert both("grad_norm") == pytest.approx(alone("grad_norm"), rel=1e-2)


def test_muon_resumes_to_the_same_losses(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finetune(recipe(checkpoint, annotation, whole, optimizer="muon", ctc_weight=0.2))
    cut.mkdir()
    shutil.copytree(whole / "checkpoint-3", cut / "checkpoint-3")
    finetune(recipe(checkpoint, annotation, cut, optimizer="muon", ctc_weight=0.2), resume=True)
    assert logged(cut, 4, "loss") == pytest.approx(logged(whole, 4, "loss"), abs=1e-6)
    start, end = weights(whole / "final"), weights(cut / "final")
    assert all(torch.allclose(start[name], end[name], atol=1e-6) for name in start)


def test_muon_steps_matrices_and_adamw_the_rest(checkpoint: Path) -> None:
    model = TrainedModel(load(checkpoint), RunConfig("out", ctc_weight=0.1))
    choose_parts(model.model, EVERYTHING)
    run = RunConfig("out", optimizer="muon", lr=1e-2, min_lr=0.0, warmup_steps=2, weight_decay=0.0)
    optimizer = make_optimizer(model, run)
    scheduler = make_scheduler(optimizer, run)
    owners = [
        {id(p) for group in inner.param_groups for p in group["params"]}
        for inner in optimizer._both  # type: ignore[attr-defined]
    ]
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    assert owners[0] | owners[1] == set(names)
    assert not owners[0] & owners[1]
    by_muon = {names[i] for i in owners[0]}
    assert "model.whisper.layers.0.fc1.weight" in by_muon
    assert not {n for n in by_muon if n.endswith("bias") or "conv" in n or "embed" in n or "ctc_head" in n}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    scheduler.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(names.values())
    assert {group["lr"] for inner in optimizer._both for group in inner.param_groups} == {1e-2}  # type: ignore[attr-defined]


def test_snapshots_of_other_parts_are_refused(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    finetune(recipe(checkpoint, annotation, tmp_path / "run", steps=1))
    model = TrainedModel(load(checkpoint), RunConfig("out"))
    choose_parts(model.model, TrainedParts(qformer=True))
    with pytest.raises(CheckpointError, match=r"checkpoint-1 is of a run that trained other parts: \d+ tensors"):
        load_trained(model, tmp_path / "run" / "checkpoint-1")


def test_a_folder_with_snapshots_is_resumed_or_left_alone(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    run = recipe(checkpoint, annotation, tmp_path / "run", steps=2)
    with pytest.raises(ConfigError, match="no snapshot to resume from"):
        finetune(run, resume=True)
    finetune(run)
    shutil.rmtree(tmp_path / "run" / "final")
    shutil.rmtree(tmp_path / "run" / "best")
    with pytest.raises(ConfigError, match="checkpoint-2 is there already: go on with --resume"):
        finetune(run)
    faster = replace(run, run=replace(run.run, lr=0.1))
    with pytest.raises(ConfigError, match=r"begun with other settings.*run\.lr: 0\.001 is now 0\.1"):
        finetune(faster, resume=True)
    finetune(replace(run, run=replace(run.run, log_every=2)), resume=True)
    assert (tmp_path / "run" / "final").is_dir()


def test_the_last_snapshot_is_measured_too(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    finetune(recipe(checkpoint, annotation, tmp_path / "run", steps=3, save_every=2))
    assert len(logged(tmp_path / "run", 3, "eval_loss")) == 2


def test_a_word_error_rate_needs_transcripts(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    entries = json.loads(annotation.read_text())["annotation"]
    captions = annotation.parent / "captions.json"
    captions.write_text(json.dumps({"annotation": [entry | {"task": "caption"} for entry in entries]}))
    run = recipe(checkpoint, annotation, tmp_path / "run", metric="wer")
    with pytest.raises(ConfigError, match=r"metric wer needs entries of task asr in data\.valid"):
        finetune(replace(run, data=replace(run.data, valid=(DataSet(str(captions)),))))


def test_only_what_was_trained_changes_its_precision(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    run = recipe(checkpoint, annotation, tmp_path / "run", steps=1, save_dtype="float16")
    finetune(replace(run, train=TrainedParts(qformer=True)))
    with safe_open(tmp_path / "run" / "final" / "model.safetensors", "pt") as file:
        dtypes = {name.split(".")[0]: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert dtypes.pop("qformer") == torch.float16
    assert set(dtypes.values()) == {torch.float32}


def test_settings_that_make_no_sense_are_refused(annotation: Path) -> None:
    with pytest.raises(ConfigError, match="weight is 0; it must be above 0"):
        DataSet(str(annotation), weight=0.0)
    with pytest.raises(ConfigError, match=r"data\.valid measures answers"):
        Recipe(
            "start",
            DataConfig((DataSet("a"),), valid=(DataSet("a"),)),
            RunConfig("out", answer_weight=0.0, ctc_weight=1.0),
        )
    with pytest.raises(ConfigError, match=r"run\.ctc_weight is -1"):
        RunConfig("out", ctc_weight=-1.0)
