"""A pruning run: layers are chosen, a checkpoint without them is written, or only what it would be is said."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from salmonrun.runtime.config import Pruning
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.checkpoint import Checkpoint, open_checkpoint, stored_prefix, write_checkpoint
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.pruning.calibration import Calibration, load_measured, read_calibration
from salmonrun.training.pruning.choose import Plan, choose, count_to_go
from salmonrun.training.pruning.layers import PARTS, Part, count_layers
from salmonrun.training.pruning.low_rank import ranks, thin_whisper
from salmonrun.training.pruning.removal import check_mergeable, remove_layers, whole_layers
from salmonrun.training.pruning.sensitivity import Sensitivity, read_sensitivity, tool

Method = Literal["dropped", "merged", "low-rank"]


@dataclass(frozen=True)
class PruneOptions:
    """What is to go, and how it is chosen."""

    shares: Mapping[Part, float]  # of each part's layers to be left out
    plan: Plan = field(default_factory=Plan)
    merge: bool = False  # into the layers before them; else they are dropped
    low_rank: float | None = None  # of the weights of Whisper's linear layers, what two thin ones keep; None: as it is
    measured: str | Path | None = None  # what `prune sensitivity` wrote
    data: str | Path | None = None  # annotation of recordings to measure on
    limit: int | None = None  # only the first so many of them

    def __post_init__(self) -> None:
        if not self.shares and self.low_rank is None:
            raise ConfigError("nothing is to be left out; say how much of which part, such as --llm 0.3")
        if self.low_rank is not None and not 0 < self.low_rank < 1:
            raise ConfigError(f"low_rank is {self.low_rank:g}; expected the share of the weights to keep, 0 to 1")

    @classmethod
    def of(cls, settings: Any) -> "PruneOptions":
        """Those of a command line or a recipe, which has them under the names of `salmonrun prune apply`.

        Raises:
            ConfigError: they cannot be, as everywhere.
        """
        return cls(
            shares={part: share for part in PARTS if (share := getattr(settings, part)) is not None},
            plan=Plan(settings.criterion, settings.search, settings.protect),
            **{name: getattr(settings, name) for name in ("merge", "low_rank", "measured", "data", "limit")},
        )


@dataclass(frozen=True)
class Pruned:
    """A checkpoint before and after."""

    before: ModelConfig
    after: ModelConfig
    gone: dict[Part, tuple[int, ...]]  # by their numbers in the checkpoint that was pruned
    explained: dict[str, float] = field(default_factory=dict)  # of a layer of low rank, the variance its output keeps


def prune(
    checkpoint: str | Path, out: str | Path, options: PruneOptions, dry_run: bool = False, progress: bool = False
) -> Pruned:
    """Choose layers and write a checkpoint without them.

    Args:
        checkpoint: folder to read.
        out: folder to create.
        options: what is to go.
        dry_run: write nothing. Without anything measured and without recordings it is not chosen which layers go: the
            sizes do not depend on it.
        progress: show bars, on a terminal.

    Raises:
        CheckpointError: the checkpoint or an entry cannot be used, `out` exists, or another one was measured.
        ConfigError: the options cannot be followed for this model.
    """
    if Path(out).exists() and not dry_run:  # now, and not after minutes of measuring
        raise CheckpointError(f"{out} exists; choose another name or remove it")
    source = open_checkpoint(checkpoint)
    counts = {
        part: count_to_go(part, count_layers(source.config, part), options.shares[part], options.plan.protect)
        for part in PARTS
        if part in options.shares
    }
    for part in counts if options.merge else ():
        check_mergeable(source.config, part)
    sha256 = source.sha256()
    measured = _measured(sha256, source, options)
    if dry_run and measured is None and options.data is None:
        first = options.plan.protect
        gone = {part: tuple(range(first, first + count)) for part, count in counts.items()}
        after = _without(source, sha256, gone, options).config
        if options.low_rank is not None:
            after = replace(after, whisper=replace(after.whisper, ranks=ranks(after.whisper, options.low_rank)))
        return Pruned(source.config, after, {})
    if options.low_rank is not None and options.data is None:
        raise ConfigError("low_rank needs recordings, whose activations it keeps: give some (--data ANNOTATION)")
    with ExitStack() as stack:
        calibration = None
        if options.data is not None:
            model = load_measured(checkpoint)
            entries = read_calibration(options.data, model, options.limit)
            folder = stack.enter_context(TemporaryDirectory(prefix="salmonrun-prune-"))
            calibration = Calibration(model, entries, Path(folder), progress)
        gone = _chosen(counts, options.plan, measured, calibration)
        pruned = _without(source, sha256, gone, options)
        explained: dict[str, float] = {}
        if options.low_rank is not None and calibration is not None:
            step = _step(pruned, sha256, "whisper", "low-rank", share=options.low_rank)
            log_mels = (calibration.log_mel(entry) for entry in calibration.entries)
            pruned, explained = thin_whisper(pruned, options.low_rank, log_mels, step)
    if not dry_run:
        write(pruned, out)
    return Pruned(source.config, pruned.config, gone, explained)


def write(checkpoint: Checkpoint, out: str | Path) -> None:
    """Write a checkpoint whose tensors are read on demand; parts that it refers to stay where they are."""
    config = checkpoint.config
    referred = {part for part, _ in config.sources.items()}
    tensors = {
        f"{stored_prefix(config, part)}.{name}": get().contiguous()
        for part, named in checkpoint.parts.items()
        if part not in referred
        for name, get in named.items()
    }
    write_checkpoint(config, tensors, checkpoint.tokenizer_file, out)


def _measured(sha256: str, source: Checkpoint, options: PruneOptions) -> Sensitivity | None:
    if options.measured is None:
        return None
    measured = read_sensitivity(options.measured)
    if measured.checkpoint != sha256:
        raise CheckpointError(
            f"{options.measured} was measured on another checkpoint than {source.folder}; measure this one"
        )
    return measured


def _chosen(
    counts: Mapping[Part, int], plan: Plan, measured: Sensitivity | None, calibration: Calibration | None
) -> dict[Part, tuple[int, ...]]:
    """The layers of each part. What is measured here is measured on the model without those that are chosen already."""
    gone: dict[Part, frozenset[int]] = {}
    for part, count in counts.items():
        if calibration is not None:
            calibration.settle(gone)
        gone[part] = frozenset(choose(part, count, plan, measured, calibration, dict(gone)))
    return {part: tuple(sorted(layers)) for part, layers in gone.items()}


def _without(
    source: Checkpoint, sha256: str, gone: Mapping[Part, tuple[int, ...]], options: PruneOptions
) -> Checkpoint:
    pruned, plan = source, options.plan
    for part, numbers in gone.items():
        method: Method = "merged" if options.merge else "dropped"
        step = _step(source, sha256, part, method, numbers, criterion=plan.criterion, search=plan.search)
        pruned = remove_layers(pruned, part, numbers, step)
    return pruned


def _step(
    source: Checkpoint,
    sha256: str,
    part: Part,
    method: Method,
    gone: Sequence[int] = (),
    criterion: str = "",
    search: str = "",
    share: float | None = None,
) -> Pruning:
    """What the lineage says of a part of `source` when layers that are `gone` have left it."""
    count, kept = whole_layers(source.config, part)
    kept = tuple(original for layer, original in enumerate(kept) if layer not in gone)
    return Pruning(part, method, f"{tool()} prune apply", sha256, count, kept, criterion, search, share)
