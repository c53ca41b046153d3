"""A distillation: student and teacher are checked, the cache is filled, and fine-tuning does the rest."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tokenizers
import torch
from accelerate import PartialState

from salmonrun.runtime.config import Distillation, Learned
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.checkpoint import Checkpoint, open_checkpoint
from salmonrun.training.data.dataset import load_entries
from salmonrun.training.distillation.hidden import check_parts
from salmonrun.training.distillation.objective import DistilledModel, common_vocab
from salmonrun.training.distillation.recipe import DistillRecipe
from salmonrun.training.distillation.target_cache import Asked, CacheSettings, TargetCache
from salmonrun.training.distillation.teacher import Teacher
from salmonrun.training.finetuning.finetune import COMPUTE_DTYPES, check_unused, finetune
from salmonrun.training.model.salmonn import SalmonnModel
from salmonrun.version import __version__


@dataclass(frozen=True)
class _Pair:
    student: Checkpoint
    teacher: Checkpoint


def distill(recipe: DistillRecipe, resume: bool = False) -> Path:
    """Train the student, and write what fine-tuning writes: `<run.out>/final`, and with validation data `best`.

    Args:
        recipe: the run.
        resume: go on from the latest whole snapshot in `run.out`, to the same losses as without the interruption. What
            the teacher has said is kept without it.

    Raises:
        CheckpointError: a checkpoint or the data cannot be used.
        ConfigError: the student cannot learn this from this teacher.
    """
    config = recipe.distill
    check_unused(recipe.run)
    pair = _Pair(open_checkpoint(recipe.checkpoint), open_checkpoint(config.teacher))
    _check(pair, recipe)
    dtype = COMPUTE_DTYPES[recipe.run.precision]
    source = Teacher(config.teacher, dtype) if config.cache is None else _filled(pair, recipe, dtype)
    lesson = _lesson(pair.teacher, recipe)

    def taught(model: SalmonnModel) -> DistilledModel:
        model.config = replace(model.config, distillation=(*model.config.distillation, lesson))
        return DistilledModel(model, recipe, pair.teacher.config, source)

    return finetune(recipe, resume, taught)


def _lesson(teacher: Checkpoint, recipe: DistillRecipe) -> Distillation:
    """What the student's config keeps of it."""
    config = recipe.distill
    weights: dict[Learned, float] = {"logits": config.logits, "hidden": config.hidden, "qformer": config.qformer}
    learned = tuple(name for name, weight in weights.items() if weight)
    return Distillation(teacher.config.name, teacher.sha256(), learned, recipe.run.steps, f"salmonrun {__version__}")


def _filled(pair: _Pair, recipe: DistillRecipe, dtype: torch.dtype) -> TargetCache:
    """What the teacher says of all entries; it is loaded if there is one that it was not asked about."""
    config = recipe.distill
    assert config.cache is not None, "asked before"
    assert config.top_k is not None, "DistillConfig requires it beside a cache"
    vocab = common_vocab(pair.student.config, pair.teacher.config)
    cache = TargetCache(
        config.cache, CacheSettings(pair.teacher.sha256(), config.temperature, config.top_k, vocab, str(dtype))
    )
    prompts, tokenizer = pair.student.config.prompt, Tokenizer(pair.student.tokenizer_file)
    entries, _, _ = load_entries(recipe.data.train, recipe.data, prompts, pair.student.config.audio)
    asked: list[Asked] = [(entry, tokenizer.encode(entry.text + prompts.end_symbol)) for entry in entries]
    processes = PartialState()
    share = asked[processes.process_index :: processes.num_processes]
    if cache.missing(share):
        progress = processes.is_main_process and sys.stderr.isatty()
        cache.fill(share, Teacher(config.teacher, dtype), processes.device, recipe.run.batch_size, progress)
    processes.wait_for_everyone()
    cache.open()
    return cache


def _check(pair: _Pair, recipe: DistillRecipe) -> None:
    config, (student, teacher) = recipe.distill, (pair.student.config, pair.teacher.config)
    _check_tokens(pair)
    vocab = common_vocab(student, teacher)
    if config.top_k is not None and config.top_k >= vocab:
        raise ConfigError(f"distill.top_k is {config.top_k}, and there are {vocab} tokens; leave it out to have all")
    parts = config.hidden_parts if config.hidden else ()
    check_parts(student, teacher, parts)
    if (config.qformer or set(parts) - {"llm"}) and student.front_end != teacher.front_end:
        raise ConfigError(
            "the student's spectrograms or windows are not the teacher's, so their frames do not lie side by side: set "
            "distill.qformer to 0, and distill.hidden_parts to [llm]"
        )


def _check_tokens(pair: _Pair) -> None:
    """Logits and hidden states are compared token by token."""
    files = (pair.student.tokenizer_file, pair.teacher.tokenizer_file)
    mine, other = (tokenizers.Tokenizer.from_file(str(file)).get_vocab() for file in files)
    teacher, student = pair.teacher.folder, pair.student.folder
    if mine != other:
        unlike = next(token for token in sorted(mine | other) if mine.get(token) != other.get(token))
        raise ConfigError(
            f"{student} and {teacher} have different tokenizers: {unlike!r} is {mine.get(unlike)} in the student's, "
            f"{other.get(unlike)} in the teacher's. Let the student learn from what the teacher writes: salmonrun "
            f"distill answers {teacher} ANNOTATION OUT, then salmonrun finetune with data.train.0.annotation=OUT"
        )
    ends = pair.student.config.prompt.end_symbol, pair.teacher.config.prompt.end_symbol
    if ends[0] != ends[1]:
        raise ConfigError(
            f"answers of {student} end in {ends[0]!r}, those of {teacher} in {ends[1]!r}; the teacher would teach "
            "another end: give the student the same end_symbol"
        )
