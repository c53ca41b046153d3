"""Fine-tuning on transformers' Trainer, which owns the loop, accumulation, mixed precision, resuming and processes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader

from runtime.errors import ConfigError
from training.cache import FeatureCache
from training.checkpoint import load, open_checkpoint, save
from training.dataset import Batch, BucketSampler, SpeechDataset, collate_examples, load_entries
from training.features import FeatureBatch, StateBatch
from training.lora import add_lora, base_parameters, lora_parameters
from training.model import SalmonnModel
from training.qlora import hold_in_4_bits
from training.recipe import Recipe, RunConfig, TrainedParts

CTC_BLANK = 0  # characters are their code points, 1 to 127; others are left out of the auxiliary loss
CTC_CLASSES = 128
COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of a 4-bit LLM


class TrainedModel(nn.Module):
    """The model with what only training needs: the auxiliary character loss on the Whisper states."""

    def __init__(self, model: SalmonnModel, run: RunConfig) -> None:
        super().__init__()
        self.model = model
        self.answer_weight = run.answer_weight
        self.ctc_weight = run.ctc_weight
        self.ctc_head = nn.Linear(model.config.whisper.d_model, CTC_CLASSES) if run.ctc_weight else None

    def forward(self, batch: Batch, num_items_in_batch: Tensor | int | None = None, **_: Any) -> dict[str, Tensor]:
        """Loss per target token; over accumulated batches it is divided by the tokens of all of them."""
        tokens = num_items_in_batch if num_items_in_batch is not None else sum(map(len, batch.targets))
        states = self._states(batch.features)
        loss = torch.zeros((), device=self.model.device)
        if self.answer_weight:
            answers = self.model.answer_loss(self.model.fuse(states), batch.prompts, batch.targets)
            loss = loss + self.answer_weight * answers
        if self.ctc_head is not None:
            loss = loss + self.ctc_weight * self._ctc_loss(states, batch)
        return {"loss": loss / tokens}

    def _states(self, features: FeatureBatch | StateBatch) -> StateBatch:
        on_device = features.to(self.model.device)
        if isinstance(on_device, StateBatch):  # from the cache
            return on_device
        return self.model.encode_states(on_device) if self.answer_weight else self.model.hear_speech(on_device)

    def _ctc_loss(self, states: StateBatch, batch: Batch) -> Tensor:
        """Sum over the rows that have a transcript."""
        assert self.ctc_head is not None
        texts = [[ord(char) for char in text if 0 < ord(char) < CTC_CLASSES] for text in batch.transcripts]
        log_probs = self.ctc_head(states.speech).float().log_softmax(dim=-1).transpose(0, 1)
        losses = nn.functional.ctc_loss(
            log_probs,
            torch.tensor([code for text in texts for code in text], device=states.speech.device),
            states.frames,
            torch.tensor([len(text) for text in texts], device=states.speech.device),
            blank=CTC_BLANK,
            reduction="none",
            zero_infinity=True,
        )
        spoken = torch.tensor([bool(text) for text in texts], device=states.speech.device)
        return (losses * spoken).sum()


class _Trainer(transformers.Trainer):
    """Trainer with our batches, and snapshots that hold only what is trained."""

    def __init__(self, recipe: Recipe, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._recipe = recipe
        self.model_accepts_loss_kwargs = True  # forward divides by the tokens of all accumulated batches

    def get_train_dataloader(self) -> DataLoader:
        """Batches of similar lengths, enough for the whole run."""
        run, dataset = self._recipe.run, self.train_dataset
        sampler = BucketSampler(
            dataset.lengths,
            dataset.weights,
            run.batch_size,
            run.steps * run.accumulate * self.args.world_size,
            run.seed,
        )
        loader: DataLoader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate_examples,
            num_workers=run.workers,
            persistent_workers=run.workers > 0,
        )
        return self.accelerator.prepare(loader)

    # Trainer's two hooks for what a snapshot holds.
    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(trained_state(self.accelerator.unwrap_model(self.model)), folder / "trained.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        state = torch.load(Path(resume_from_checkpoint) / "trained.pt", weights_only=True)
        target = trained_state(self.accelerator.unwrap_model(model or self.model))
        with torch.no_grad():
            for name, value in state.items():
                target[name].copy_(value)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes."""
    return {name: value.data for name, value in model.named_parameters() if value.requires_grad}


def choose_parts(model: SalmonnModel, parts: TrainedParts) -> None:
    """Freeze all but the chosen parts, and store what changes: it no longer is what its source holds.

    Raises:
        ConfigError: nothing is left to train.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    chosen: list[tuple[bool, list[nn.Parameter]]] = [
        (parts.whisper, list(base_parameters(model.whisper).values())),
        (parts.whisper_lora, list(lora_parameters(model.whisper).values())),
        (parts.beats, list(model.beats.parameters()) if model.beats is not None else []),
        (parts.qformer, list(model.qformer.parameters())),
        (parts.llm, list(base_parameters(model.llm).values())),
        (parts.lora, list(lora_parameters(model.llm).values())),
    ]
    for trained, parameters in chosen:
        for tensor in parameters if trained else []:
            tensor.requires_grad_(True)
    model.whisper.embed_positions.weight.requires_grad_(False)  # a fixed table
    changed = {part: None for part in ("whisper", "beats", "llm") if getattr(parts, part)}
    model.config = replace(model.config, sources=replace(model.config.sources, **changed))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"nothing is trained: all of {parts} are off or absent")


def finetune(recipe: Recipe, resume: bool = False) -> Path:
    """Train and write the final checkpoint, `<run.out>/final`.

    Args:
        recipe: the run.
        resume: go on from the latest snapshot in `run.out`, to the same losses as without the interruption.

    Raises:
        CheckpointError: the checkpoint or the data cannot be used.
        ConfigError: the recipe asks for what cannot be done.
    """
    run = recipe.run
    final = Path(run.out) / "final"
    if final.exists():  # found out now, and not after hours of training
        raise ConfigError(f"{final} exists; choose another run.out or remove it")
    transformers.set_seed(run.seed)
    arguments = _arguments(run)
    model = _model(recipe, arguments.device)
    dataset = _dataset(recipe, model, arguments)
    wrapped = TrainedModel(model, run)
    trainer = _Trainer(
        recipe,
        model=wrapped,
        args=arguments,
        train_dataset=dataset,
        optimizers=_optimizers(wrapped, run),
    )
    trainer.train(resume_from_checkpoint=resume or None)
    if trainer.is_world_process_zero():
        start = open_checkpoint(recipe.checkpoint, verify=False)
        save(model, final, start.tokenizer_file, llm_base=start.parts["llm"] if recipe.quantize_llm else None)
    return final


def _model(recipe: Recipe, device: torch.device) -> SalmonnModel:
    """The checkpoint's model, its parts held and frozen as the recipe says."""
    dtype = COMPUTE_DTYPES[recipe.run.precision] if recipe.quantize_llm else torch.float32
    model = load(recipe.checkpoint, dtype=dtype)
    if recipe.whisper_lora:
        if model.config.whisper_lora:
            raise ConfigError(f"{recipe.checkpoint} has adapters on Whisper; leave out whisper_lora to train those")
        add_lora(model.whisper, recipe.whisper_lora, "whisper_lora")
        model.config = replace(model.config, whisper_lora=recipe.whisper_lora)
    if recipe.quantize_llm:
        hold_in_4_bits(model.llm, dtype, device)
    choose_parts(model, recipe.train)
    return model


def _dataset(recipe: Recipe, model: SalmonnModel, arguments: transformers.TrainingArguments) -> SpeechDataset:
    entries, weights, problems = load_entries(recipe.data.train, recipe.data, model)
    for problem in problems:
        transformers.logging.get_logger("training").warning(str(problem))
    cache = FeatureCache(recipe.data.cache, model, recipe.augment) if recipe.data.cache else None
    if cache:
        with arguments.main_process_first(desc="features"):
            cache.fill(entries, progress=arguments.process_index == 0)
    return SpeechDataset(entries, weights, model, recipe.data.multi_prompt, recipe.augment, recipe.run.seed, cache)


def _arguments(run: RunConfig) -> transformers.TrainingArguments:
    if run.precision == "fp16" and not torch.cuda.is_available():
        # transformers would go on without the loss scaling that keeps small gradients from vanishing.
        raise ConfigError("run.precision fp16 needs a CUDA GPU; use bf16 or fp32")
    return transformers.TrainingArguments(
        output_dir=run.out,
        max_steps=run.steps,
        per_device_train_batch_size=run.batch_size,
        gradient_accumulation_steps=run.accumulate,
        max_grad_norm=run.max_grad_norm,
        bf16=run.precision == "bf16",
        fp16=run.precision == "fp16",
        logging_steps=run.log_every,
        save_steps=run.save_every,
        save_total_limit=2,
        seed=run.seed,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_nan_inf_filter=False,
        average_tokens_across_devices=True,
    )


def _optimizers(model: nn.Module, run: RunConfig) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW without decay on vectors; linear warm-up, then a cosine to min_lr, per step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": run.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=run.lr, betas=(0.9, 0.999))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_share(step, run))


def lr_share(step: int, run: RunConfig) -> float:
    """Share of run.lr at a step."""
    if step < run.warmup_steps:
        return (step + 1) / run.warmup_steps
    progress = min(1.0, (step - run.warmup_steps) / max(1, run.steps - run.warmup_steps))
    floor = run.min_lr / run.lr
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
