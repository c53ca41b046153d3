"""Which layers go: those that a criterion says are needed least, all at once, one after the other, or side by side."""

from dataclasses import dataclass
from typing import Literal, get_args

from salmonrun.runtime.errors import ConfigError
from salmonrun.training.pruning.calibration import Calibration, score
from salmonrun.training.pruning.layers import Part, count_layers
from salmonrun.training.pruning.sensitivity import (
    OBSERVED,
    Criterion,
    PartSensitivity,
    Sensitivity,
    score_layers,
    score_runs,
)

Search = Literal["one-shot", "greedy", "contiguous"]
SEARCHES: tuple[Search, ...] = get_args(Search)


@dataclass(frozen=True)
class Plan:
    """How layers are chosen."""

    criterion: Criterion = "loss"
    search: Search = "one-shot"
    protect: int = 1  # layers at each end that stay: the first and the last carry most

    def __post_init__(self) -> None:
        if self.protect < 0:
            raise ConfigError(f"protect is {self.protect}; it must be at least 0")


def count_to_go(part: Part, layers: int, share: float, protect: int) -> int:
    """How many layers a share is.

    Raises:
        ConfigError: it is none, or more than are not protected.
    """
    if not 0 < share < 1:
        raise ConfigError(
            f"{part} is {share:g}; expected the share of the layers to leave out, more than 0, less than 1"
        )
    count, free = round(share * layers), max(0, layers - 2 * protect)
    if not count:
        raise ConfigError(f"{part} is {share:g}; that is none of {layers} layers: one is {1 / layers:.2g}")
    if count > free:
        raise ConfigError(
            f"{part} is {share:g}: {count} of {layers} layers, but {protect} at each end are protected, which leaves "
            f"{free}; take a smaller share, or protect fewer (--protect 0)"
        )
    return count


def choose(
    part: Part,
    count: int,
    plan: Plan,
    measured: Sensitivity | None,
    calibration: Calibration | None,
    gone: dict[Part, frozenset[int]],
) -> tuple[int, ...]:
    """The numbers of the layers of a part to leave out, ascending.

    Args:
        part: of the model.
        count: how many.
        plan: how they are chosen.
        measured: what `prune sensitivity` found; None: it is measured here.
        calibration: model and recordings; None: what was measured has to do.
        gone: layers of other parts that the model goes without already.

    Raises:
        ConfigError: this needs recordings, and there is no `calibration`, or the part was not measured.
    """
    if plan.search == "greedy":
        return _greedy(part, count, plan, _needed(calibration, "search is 'greedy', which measures again"), gone)
    if measured is not None and part not in measured.parts:
        raise ConfigError(f"{part} was not measured, only {', '.join(measured.parts)}; measure it, or give recordings")
    found = measured.parts[part] if measured else None
    if plan.search == "contiguous":
        return _contiguous(part, count, plan, found, calibration, gone)
    if found is None:
        return _least(part, count, plan, _needed(calibration, "nothing was measured"), gone)
    scores = found.of(plan.criterion)
    free = range(plan.protect, len(scores) - plan.protect)
    return tuple(sorted(sorted(free, key=lambda layer: scores[layer])[:count]))


def _least(
    part: Part, count: int, plan: Plan, calibration: Calibration, gone: dict[Part, frozenset[int]]
) -> tuple[int, ...]:
    """The least needed of those that are left and not protected."""
    layers, before = count_layers(calibration.model.config, part), gone.get(part, frozenset())
    free = [layer for layer in range(plan.protect, layers - plan.protect) if layer not in before]
    scores = score_layers(calibration, part, plan.criterion, gone, free)
    return tuple(sorted(sorted(free, key=lambda layer: scores[layer])[:count]))


def _greedy(
    part: Part, count: int, plan: Plan, calibration: Calibration, gone: dict[Part, frozenset[int]]
) -> tuple[int, ...]:
    """The least needed of those that are left, measured again after every one."""
    chosen: frozenset[int] = frozenset()
    for _ in range(count):
        chosen |= frozenset(_least(part, 1, plan, calibration, gone | {part: chosen}))
    return tuple(sorted(chosen))


def _contiguous(
    part: Part,
    count: int,
    plan: Plan,
    found: PartSensitivity | None,
    calibration: Calibration | None,
    gone: dict[Part, frozenset[int]],
) -> tuple[int, ...]:
    """The run of layers that is needed least as a whole."""
    if plan.criterion not in OBSERVED:
        runs = _needed(calibration, f"criterion is {plan.criterion!r}, which of runs of layers is measured")
        last = count_layers(runs.model.config, part) - plan.protect - count
        removed = {i: gone | {part: frozenset(range(i, i + count))} for i in range(plan.protect, last + 1)}
        scores = {i: getattr(score(runs.losses(each)), plan.criterion) for i, each in removed.items()}
    else:
        values = (
            found.of_runs(plan.criterion, count)
            if found is not None
            else score_runs(_needed(calibration, "nothing was measured"), part, plan.criterion, gone, count)
        )
        scores = dict(list(enumerate(values))[plan.protect : len(values) - plan.protect])
    start = min(scores, key=lambda i: scores[i])
    return tuple(range(start, start + count))


def _needed(calibration: Calibration | None, why: str) -> Calibration:
    if calibration is None:
        raise ConfigError(f"{why}: give recordings with their answers (--data ANNOTATION)")
    return calibration
