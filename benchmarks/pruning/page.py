"""The curve as a table for a page, and what it says to choose."""

from collections.abc import Sequence

from benchmarks.pruning.steps import Found
from benchmarks.tables import table
from salmonrun.training.evaluation.report.measured import Measured

HEADER = (
    *("left out", "WER", "WER healed", "million weights", "million MAC, encoders for 10 s"),
    *("million MAC, LLM a position", "size, MiB", "memory, MiB", "first token", "per token"),
)


def curve_table(found: Sequence[Found], task: str) -> str:
    """A row a point, the whole model first: before and after it was healed, and what the bundle takes."""
    header = [*HEADER]
    tasks = [other for one in found if one.after for other in one.after.quality if other != task]
    others = list(dict.fromkeys(tasks))
    header[3:3] = [f"{other} healed" for other in others]
    return table(header, [_row(one, task, others) for one in found])


def better(one: Found, task: str) -> Measured | None:
    """A point as it was or healed, whichever answers better: a short training can cost more than it brings."""
    return min(filter(None, (one.before, one.after)), key=lambda measured: _error(measured, task), default=None)


def fastest(found: Sequence[Found], task: str, slack: float) -> Found | None:
    """Of the points whose quality is at most `slack` worse than the whole model's, the fastest, each at its best."""
    whole = better(found[0], task)
    if whole is None:
        return None
    errors = [(one, _error(best, task)) for one in found if (best := better(one, task))]
    return min((one for one, error in errors if error <= _error(whole, task) + slack), key=_latency)


def recommendation(found: Sequence[Found], task: str, slack: float) -> str:
    """In words."""
    chosen, whole = fastest(found, task, slack), better(found[0], task)
    best = better(chosen, task) if chosen else None
    if chosen is None or best is None or whole is None:
        return "The whole model could not be exported: there is nothing to compare with."
    if chosen is found[0]:
        return f"No point stays within {slack:.1%} of the whole model's WER and is faster: leave nothing out."
    how = "healed" if best is chosen.after else "as it is"
    return (
        f"The fastest whose WER is at most {100 * slack:g} points above that of the whole model: {chosen.point.name}, "
        f"{how} ({_error(best, task):.1%} beside {_error(whole, task):.1%}; latency "
        f"{_latency(chosen) / _latency(found[0]):.2f}, size {best.size_bytes / whole.size_bytes:.2f} of it)."
    )


def _row(one: Found, task: str, others: Sequence[str]) -> list[str]:
    known = one.after or one.before
    cells = [one.point.name, *(_shown(measured, task) for measured in (one.before, one.after))]
    cells += [_shown(one.after, other) for other in others]
    encoders = sum(part.multiplications for name, part in one.size.parts.items() if name != "llm")
    cells += [f"{count / 1e6:.2f}" for count in (one.size.parameters, encoders, one.size.parts["llm"].multiplications)]
    if known is None:
        return [*cells, one.refused]
    cost = one.cost or known.cost
    times = (f"{1e3 * cost.ttft_s:.1f} ms", f"{1e3 * cost.tpot_s:.2f} ms")
    return [*cells, f"{known.size_mb:.1f}", f"{cost.peak_mb:.0f}", *times]


def _shown(measured: Measured | None, task: str) -> str:
    if measured is None:
        return "-"
    quality = measured.quality[task]
    return f"{quality.wer:.1%}" if quality.measure == "WER" else f"{quality.measure} {quality.value:.2f}"


def _error(measured: Measured, task: str) -> float:
    quality = measured.quality[task]
    return quality.value if quality.measure == "WER" else -quality.value


def _latency(one: Found) -> float:
    cost = one.cost or (one.after or one.before or _unknown(one)).cost
    return cost.latency_s


def _unknown(one: Found) -> Measured:
    raise ValueError(f"{one.point.name} was not measured: {one.refused}")
