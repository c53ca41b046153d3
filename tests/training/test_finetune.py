"""Fine-tuning on a handful of noises: the loop is transformers', what is tested is what we give it."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.checkpoint import load
from salmonrun.training.data.config import Augmentation, DataConfig, DataSet
from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.optimizer import lr_share
from salmonrun.training.finetuning.parts import choose_parts
from salmonrun.training.finetuning.recipe import Recipe, RunConfig, TrainedParts
from salmonrun.training.finetuning.trainer import RecipeTrainer
from salmonrun.training.model.llm import attention_kernel
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from tests.helpers.losses import Answer, mean_loss
from tests.helpers.runs import logged, write_noises

EVERYTHING = TrainedParts(whisper=True, audio_encoder=True, qformer=True, llm=True)
TEXTS = ("one", "two three", "four", "five six seven")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = preset("tiny")
    trimmed = replace(config, audio=replace(config.audio, window="trimmed", min_s=0.5))
    folder = tmp_path_factory.mktemp("start") / "checkpoint"
    init_checkpoint(trimmed, folder, fresh=True)
    return folder


@pytest.fixture(scope="module")
def annotation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noises(tmp_path_factory.mktemp("data"), TEXTS)


def recipe(checkpoint: Path, annotation: Path, out: Path, **run: object) -> Recipe:
    settings = {"steps": 1, "batch_size": 4, "lr": 1e-3, "warmup_steps": 1, "log_every": 1, "save_every": 2, **run}
    data = DataConfig((DataSet(str(annotation)),))
    return Recipe(str(checkpoint), data, RunConfig(str(out), **settings), EVERYTHING)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in load(folder).named_parameters()}


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_four_batches_of_one_are_one_batch_of_four(
    checkpoint: Path, annotation: Path, tmp_path: Path, ctc_weight: float
) -> None:
    whole = finetune(recipe(checkpoint, annotation, tmp_path / "whole", ctc_weight=ctc_weight))
    parts = finetune(
        recipe(checkpoint, annotation, tmp_path / "parts", batch_size=1, accumulate=4, ctc_weight=ctc_weight)
    )
    start, one, four = weights(checkpoint), weights(whole), weights(parts)
    assert any(not torch.equal(start[name], one[name]) for name in start)
    for name, value in one.items():
        if name.endswith(("key.bias", "k_proj.bias")):  # no gradient but rounding: softmax is blind to it
            continue
        # AdamW's first step is a sign times the rate: compare where gradients are more than rounding.
        close = (value - four[name]).abs() <= 1e-5
        assert close.float().mean() > 0.99, name


def test_the_loss_is_that_of_the_model(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    """Per target token over the whole batch."""

    out = tmp_path / "run"
    finetune(recipe(checkpoint, annotation, out, save_every=1))
    model = load(checkpoint)
    prompt = model.prompts.tasks["asr"][0]
    files = [annotation.parent / f"{i}.wav" for i in range(len(TEXTS))]
    with torch.inference_mode():
        expected = mean_loss(model, [Answer(model.load_audio(f), prompt, t) for f, t in zip(files, TEXTS, strict=True)])
    assert logged(out, 1)[0] == pytest.approx(expected.item(), abs=1e-4)


def test_resuming_gives_the_losses_of_the_uninterrupted_run(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run = {"steps": 4, "batch_size": 2}
    finetune(recipe(checkpoint, annotation, whole, **run))
    cut.mkdir()
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    finetune(recipe(checkpoint, annotation, cut, **run), resume=True)
    assert len(logged(whole, 4)) == 4
    assert logged(cut, 4) == pytest.approx(logged(whole, 4), abs=1e-6)
    first, second = weights(whole / "final"), weights(cut / "final")
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


@pytest.mark.parametrize("hook", ["_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_run_that_is_killed_while_it_saves_is_resumed(
    checkpoint: Path, annotation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finetune(recipe(checkpoint, annotation, whole, steps=4, save_every=1))
    save = getattr(RecipeTrainer, hook)

    def killed(trainer: RecipeTrainer, folder: str) -> None:
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        save(trainer, folder)

    with monkeypatch.context() as patched:
        patched.setattr(RecipeTrainer, hook, killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(recipe(checkpoint, annotation, cut, steps=4, save_every=1))
    assert sorted(folder.name for folder in cut.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    finetune(recipe(checkpoint, annotation, cut, steps=4, save_every=1), resume=True)
    assert logged(cut, 4) == pytest.approx(logged(whole, 4), abs=1e-6)
    assert not list(cut.glob(".*"))


def test_a_broken_snapshot_is_skipped_by_name(
    checkpoint: Path, annotation: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finetune(recipe(checkpoint, annotation, whole, steps=4, save_every=1))
    cut.mkdir()
    shutil.copytree(whole / "checkpoint-3", cut / "checkpoint-3")
    (cut / "checkpoint-5").mkdir()
    shutil.copytree(whole / "checkpoint-4", cut / "checkpoint-4")
    optimizer = cut / "checkpoint-4" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-100])
    finetune(recipe(checkpoint, annotation, cut, steps=4, save_every=1), resume=True)
    assert caplog.messages[0].splitlines() == [
        f"{cut}/checkpoint-5 is skipped: trained.pt is missing",
        f"{cut}/checkpoint-4 is skipped: optimizer.pt is cut off",
        f"resuming from {cut}/checkpoint-3",
    ]
    assert logged(cut, 4) == pytest.approx(logged(whole, 4), abs=1e-6)


def test_broken_snapshots_alone_cannot_be_resumed(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(ConfigError, match=r"checkpoint-1 is skipped: trained.pt is missing\n.*no snapshot to resume"):
        finetune(recipe(checkpoint, annotation, tmp_path), resume=True)


def test_bf16_gives_a_finite_loss(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    finetune(recipe(checkpoint, annotation, out, precision="bf16", save_every=1, ctc_weight=0.3))
    assert np.isfinite(logged(out, 1)[0])


def test_augmented_training_runs(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    plain = recipe(checkpoint, annotation, tmp_path / "run", save_every=1)
    finetune(replace(plain, augment=Augmentation(noise_p=1.0, gain_p=1.0, mask_p=1.0)))
    assert np.isfinite(logged(tmp_path / "run", 1)[0])


def test_only_chosen_parts_change(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    chosen = replace(recipe(checkpoint, annotation, tmp_path / "run"), train=TrainedParts(qformer=True))
    start, end = weights(checkpoint), weights(finetune(chosen))
    changed = {name.split(".")[0] for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"qformer"}


def test_what_is_answered_where_nothing_is_to_be_transcribed_travels(
    checkpoint: Path, annotation: Path, tmp_path: Path
) -> None:
    """Into the checkpoint, and from there into a run that does not name it."""
    first = finetune(replace(recipe(checkpoint, annotation, tmp_path / "first"), nothing="(nothing)"))
    assert load(first).prompts.nothing == "(nothing)"
    second = finetune(recipe(first, annotation, tmp_path / "second"))
    assert load(second).prompts == load(first).prompts


def test_a_finished_run_is_not_trained_over(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "final").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"run/final exists; choose another run\.out"):
        finetune(recipe(checkpoint, annotation, tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == [tmp_path / "run" / "final"]


def test_training_nothing_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is trained"):
        choose_parts(load(checkpoint), TrainedParts(qformer=False))


def test_broken_entries_stop_or_are_skipped(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    entries = json.loads(annotation.read_text())["annotation"]
    broken.write_text(json.dumps({"annotation": [*entries, {"path": "none.wav", "text": "x"}, {"text": "y"}]}))
    stopping = recipe(checkpoint, broken, tmp_path / "run")
    stopping = replace(stopping, data=DataConfig((DataSet(str(broken), prefix=str(annotation.parent)),)))
    with pytest.raises(CheckpointError, match=r"2 entries cannot be used(.|\n)*entry 5(.|\n)*entry 4: .*none\.wav"):
        finetune(stopping)
    finetune(replace(stopping, data=replace(stopping.data, on_broken="skip")))
    assert (tmp_path / "run" / "final").is_dir()


def test_the_rate_warms_up_and_falls_to_its_floor() -> None:
    run = RunConfig("out", steps=100, lr=1e-3, min_lr=1e-4, warmup_steps=10)
    shares = [lr_share(step, run) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == shares[10] == 1.0
    assert shares[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(shares[10:]))


def test_a_frozen_llm_is_saved_as_it_was(checkpoint: Path, annotation: Path, tmp_path: Path) -> None:
    """Though a bf16 run holds it in bf16."""
    run = replace(recipe(checkpoint, annotation, tmp_path / "run", precision="bf16"), train=TrainedParts(qformer=True))
    start, end = weights(checkpoint), weights(finetune(run))
    assert all(torch.equal(start[name], end[name]) for name in start if name.startswith("llm."))
    assert any(not torch.equal(start[name], end[name]) for name in start)


@pytest.mark.parametrize(
    ("dtype", "cuda", "installed", "expected"),
    [
        (torch.bfloat16, True, True, "flash_attention_2"),
        (torch.float16, True, True, "flash_attention_2"),
        (torch.float32, True, True, "sdpa"),
        (torch.bfloat16, False, True, "sdpa"),
        (torch.bfloat16, True, False, "sdpa"),
    ],
)
def test_flash_attention_is_used_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, cuda: bool, installed: bool, expected: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("salmonrun.training.model.llm.is_flash_attn_2_available", lambda: installed)
    assert attention_kernel(dtype) == expected
