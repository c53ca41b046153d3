"""A fine-tuning run: the recipe's model, data and trainer put together."""

import json
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers.integrations import is_tensorboard_available

from salmonrun.runtime.errors import ConfigError, MissingExtraError
from salmonrun.runtime.schema import to_dict
from salmonrun.training.checkpoint import load, open_checkpoint, save
from salmonrun.training.data.cache import FeatureCache
from salmonrun.training.data.config import Augmentation, DataSet
from salmonrun.training.data.dataset import SpeechDataset, load_entries
from salmonrun.training.finetuning.frozen import FrozenFeatures
from salmonrun.training.finetuning.objective import TrainedModel
from salmonrun.training.finetuning.parts import choose_parts
from salmonrun.training.finetuning.qlora import hold_in_4_bits
from salmonrun.training.finetuning.recipe import PruneConfig, Recipe, RunConfig
from salmonrun.training.finetuning.snapshots import PARTIAL, last_snapshot, newest_whole
from salmonrun.training.finetuning.trainer import MeasureLast, RecipeTrainer, load_trained
from salmonrun.training.finetuning.validation import GREATER_IS_BETTER, Validation
from salmonrun.training.model.config import SOURCED, load_config
from salmonrun.training.model.lora import add_lora
from salmonrun.training.model.salmonn import SalmonnModel
from salmonrun.training.pruning.prune import PruneOptions, prune

Objective = Callable[[SalmonnModel], TrainedModel]
# Settings of a run that may change when it is resumed.
LOSSES_DO_NOT_DEPEND_ON = (
    *("out", "workers", "log_every", "save_every", "save_dtype", "metric", "answered", "tensorboard"),
)
PRUNED = "pruned"  # in run.out: the checkpoint that a run with `prune` trains
LOG_MEL_MAX = 1.5  # log10 of a loud voice's mel power; the same number as Voxtral Realtime's
DAY_S = 24 * 60 * 60
_log = logging.getLogger(__name__)
COMPUTE_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}  # of products, and of a frozen LLM


def finetune(recipe: Recipe, resume: bool = False, objective: Objective | None = None) -> Path:
    """Train and write the final checkpoint, `<run.out>/final`, and with validation data the best one, `<run.out>/best`.

    Args:
        recipe: the run.
        resume: go on from the latest whole snapshot in `run.out`, to the same losses as without the interruption.
        objective: what is minimised; None for the losses that the recipe has weights for.

    Raises:
        CheckpointError: the checkpoint or the data cannot be used.
        ConfigError: the recipe asks for what cannot be done.
    """
    run, wrap = recipe.run, objective or partial(TrainedModel, run=recipe.run)
    final, best = check_unused(run)
    snapshot, skipped = _check_snapshots(recipe, resume)
    transformers.set_seed(run.seed)
    arguments = _arguments(recipe)
    if skipped and arguments.process_index == 0:
        _log.warning("\n".join([*skipped, f"resuming from {snapshot}"]))
    if recipe.prune:
        recipe = replace(recipe, checkpoint=str(_pruned(recipe, recipe.prune, arguments.process_index)))
    model = _model(recipe, arguments.device)
    dataset = _dataset(recipe, recipe.data.train, model, arguments, recipe.augment)
    valid = _dataset(recipe, recipe.data.valid, model, arguments) if recipe.data.valid else None
    wrapped = wrap(model)
    trainer = RecipeTrainer(
        recipe,
        Validation(model, valid, run) if valid else None,
        model=wrapped,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=valid,
        callbacks=[MeasureLast()],
    )
    trainer.train(resume_from_checkpoint=str(snapshot) if snapshot else None)
    if trainer.is_world_process_zero():
        if trainer.is_fsdp_enabled:  # this process holds a shard of it
            wrapped = wrap(_model(recipe, torch.device("cpu")))
        _save(wrapped, Path(run.out) / f"checkpoint-{trainer.state.global_step}", recipe, final)
        if trainer.state.best_model_checkpoint:
            _save(wrapped, trainer.state.best_model_checkpoint, recipe, best)
    return final


def check_unused(run: RunConfig) -> tuple[Path, Path]:
    """Where the last and the best checkpoint will be written.

    Raises:
        ConfigError: one of them is there: to be known now, and not after hours of training.
    """
    final, best = Path(run.out) / "final", Path(run.out) / "best"
    for folder in (final, best):
        if folder.exists():
            raise ConfigError(f"{folder} exists; choose another run.out or remove it")
    return final, best


def _pruned(recipe: Recipe, smaller: PruneConfig, process: int) -> Path:
    """The checkpoint made smaller; that of a run that was cut is taken as it is.

    Raises:
        ConfigError: another checkpoint was made smaller there.
    """
    out = Path(recipe.run.out) / PRUNED
    with PartialState().main_process_first():
        if not out.exists():
            prune(recipe.checkpoint, out, PruneOptions.of(smaller), progress=process == 0)
    steps = load_config(out).pruning
    if not steps or steps[-1].source != open_checkpoint(recipe.checkpoint, verify=False).sha256():
        raise ConfigError(f"{out} was made of another {recipe.checkpoint}; remove it or choose another run.out")
    return out


def _save(wrapped: TrainedModel, snapshot: str | Path, recipe: Recipe, folder: Path) -> None:
    """Write the checkpoint of a snapshot; what is frozen is stored as it was, whatever the run held it in."""
    load_trained(wrapped, snapshot)
    start = open_checkpoint(recipe.checkpoint, verify=False)
    frozen = {part: start.parts[part] for part in SOURCED if not getattr(recipe.train, part)}
    save(wrapped.model, folder, start.tokenizer_file, getattr(torch, recipe.run.save_dtype), frozen)


def _check_snapshots(recipe: Recipe, resume: bool) -> tuple[Path | None, list[str]]:
    """Resuming goes on with the same run, and no other run's snapshots lie in the folder.

    Returns the snapshot to go on from, and what is to be said of those that are skipped.
    """
    out = Path(recipe.run.out)
    last = last_snapshot(out)
    if last and not resume:
        raise ConfigError(f"{last} is there already: go on with --resume, choose another run.out, or remove it")
    if resume and not last:
        raise ConfigError(f"{out} has no snapshot to resume from; start without --resume")
    file, new = out / "recipe.json", json.loads(json.dumps(_same_losses(recipe)))  # tuples become lists, as in the file
    if file.is_file() and (resume or (out / PRUNED).exists()):
        old = json.loads(file.read_text())
        changed = [f"{key}: {old.get(key)} is now {new[key]}" for key in new if old.get(key) != new[key]]
        if changed:
            raise ConfigError(
                f"{out} was begun with other settings, so resuming would not give its losses: {changed[0]}"
            )
    shutil.rmtree(out / PARTIAL, ignore_errors=True)  # of a run that was killed while it wrote one
    if resume:
        return newest_whole(out)
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(new, indent=1))
    return None, []


def _same_losses(recipe: Recipe) -> dict[str, Any]:
    """The settings that losses depend on, each under its dotted name."""
    settings: dict[str, Any] = to_dict(recipe)
    run = {f"run.{key}": value for key, value in settings.pop("run").items() if key not in LOSSES_DO_NOT_DEPEND_ON}
    return settings | run


def _model(recipe: Recipe, device: torch.device) -> SalmonnModel:
    """The checkpoint's model, its parts held and frozen by the recipe."""
    dtype = torch.float32 if recipe.train.llm else COMPUTE_DTYPES[recipe.run.precision]
    model = load(recipe.checkpoint, dtype=dtype)
    if recipe.whisper_lora:
        if model.config.whisper_lora:
            raise ConfigError(f"{recipe.checkpoint} has adapters on Whisper; leave out whisper_lora to train those")
        add_lora(model.whisper, recipe.whisper_lora, "whisper_lora")
        model.config = replace(model.config, whisper_lora=recipe.whisper_lora)
    if recipe.window:
        model.config = replace(model.config, audio=replace(model.config.audio, window=recipe.window))
    if recipe.streaming:
        audio = replace(model.config.audio, window="trimmed")  # a stream knows no 30 s
        if audio.log_mel_max is None:
            audio = replace(audio, log_mel_max=LOG_MEL_MAX)
        model.config = replace(model.config, audio=audio, streaming=recipe.streaming)
    if recipe.nothing is not None:
        model.config = replace(model.config, prompt=replace(model.config.prompt, nothing=recipe.nothing))
    if recipe.quantize_llm:
        hold_in_4_bits(model.llm, dtype, device)
    choose_parts(model, recipe.train)
    return model


def _dataset(
    recipe: Recipe,
    sets: Sequence[DataSet],
    model: SalmonnModel,
    arguments: transformers.TrainingArguments,
    augment: Augmentation | None = None,
) -> SpeechDataset:
    entries, weights, problems = load_entries(sets, recipe.data, model.prompts, model.config.audio)
    if problems and arguments.process_index == 0:
        skipped = "\n".join(map(str, problems))
        _log.warning(f"{skipped}\n{len(problems)} of {len(problems) + len(entries)} entries are skipped")
    cache = None
    if recipe.data.cache:
        model.to(arguments.device)
        frozen = FrozenFeatures(model, recipe.augment, COMPUTE_DTYPES[recipe.run.precision])
        cache = FeatureCache(Path(recipe.data.cache) / frozen.key)
        rank, processes = arguments.process_index, arguments.world_size
        cache.fill(entries[rank::processes], frozen.compute, progress=rank == 0 and sys.stderr.isatty())
        PartialState().wait_for_everyone()
    return SpeechDataset(
        entries,
        weights,
        model.config.front_end,
        model.prompts,
        model.tokenizer,
        multi_prompt=recipe.data.multi_prompt,
        augment=augment,
        seed=recipe.run.seed,
        cache=cache,
    )


def _arguments(recipe: Recipe) -> transformers.TrainingArguments:
    run = recipe.run
    if run.precision == "fp16" and not torch.cuda.is_available():
        # transformers would go on without the loss scaling that keeps small gradients from vanishing.
        raise ConfigError("run.precision fp16 needs a CUDA GPU; use bf16 or fp32")
    if run.tensorboard and not is_tensorboard_available():
        raise MissingExtraError("run.tensorboard needs TensorBoard: pip install tensorboard")
    measured = bool(recipe.data.valid)
    arguments = transformers.TrainingArguments(
        output_dir=run.out,
        max_steps=run.steps,
        per_device_train_batch_size=run.batch_size,
        gradient_accumulation_steps=run.accumulate,
        max_grad_norm=1.0 if run.clip_percentile else run.max_grad_norm,  # above 0, or clipping is never asked for
        bf16=run.precision == "bf16",
        fp16=run.precision == "fp16",
        logging_steps=run.log_every,
        save_steps=run.save_every,
        save_total_limit=2,
        seed=run.seed,
        use_cpu=not torch.cuda.is_available(),
        report_to="tensorboard" if run.tensorboard else "none",
        eval_strategy="steps" if measured else "no",
        eval_steps=run.save_every if measured else None,
        metric_for_best_model=run.metric if measured else None,
        greater_is_better=GREATER_IS_BETTER[run.metric] if measured else None,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_nan_inf_filter=False,
        disable_tqdm=not sys.stderr.isatty(),  # a log file has a line for each log, and no bars
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=not recipe.trains_answers,  # then the auxiliary loss reaches Whisper alone
        ddp_timeout=DAY_S,  # a process waits for the others' share of the feature cache
    )
    if arguments.n_gpu > 1:  # transformers would share one process out among them, by threads
        raise ConfigError(
            f"{arguments.n_gpu} GPUs are visible to one process: start one for each with torchrun --nproc_per_node, "
            "or set CUDA_VISIBLE_DEVICES to one of them"
        )
    return arguments
