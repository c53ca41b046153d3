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


def fastest(found: Sequence[Found], task: str, slack: float) -> Found | None:
    """Of the points whose quality after healing is at most `slack` worse than the whole model's, the fastest.

    The whole model is that which was trained on as long as the others: what it gains or loses is not of pruning.
    """
    whole = found[0].after
    if whole is None:
        return None
    good = [one for one in found if one.after and _error(one.after, task) <= _error(whole, task) + slack]
    return min(good, key=lambda one: _latency(one))


def recommendation(found: Sequence[Found], task: str, slack: float) -> str:
    """In words."""
    chosen, whole = fastest(found, task, slack), found[0].after
    if chosen is None or chosen.after is None or whole is None:
        return "The whole model could not be exported: there is nothing to compare with."
    if chosen is found[0]:
        return f"No point stays within {slack:.1%} of the whole model's WER and is faster: leave nothing out."
    size = chosen.after.size_bytes / whole.size_bytes
    return (
        f"The fastest whose WER is at most {100 * slack:g} points above that of the whole model, trained on as long: "
        f"{chosen.point.name} ({_error(chosen.after, task):.1%} beside {_error(whole, task):.1%}; latency "
        f"{_latency(chosen) / _latency(found[0]):.2f}, size {size:.2f} of it)."
    )


def _row(one: Found, task: str, others: Sequence[str]) -> list[str]:
    known = one.after or one.before
    cells = [one.point.name, *(_shown(measured, task) for measured in (one.before, one.after))]
    cells += [_shown(one.after, other) for other in others]
    encoders = sum(part.multiplications for name, part in one.size.parts.items() if name != "llm")
    cells += [f"{count / 1e6:.2f}" for count in (one.size.parameters, encoders, one.size.parts["llm"].multiplications)]
    if known is None:
        return [*cells, one.refused]
    both = [measured.cost for measured in (one.before, one.after) if measured]
    ttft, tpot = (min(getattr(cost, metric) for cost in both) for metric in ("ttft_s", "tpot_s"))
    memory = min(cost.peak_mb for cost in both)
    return [*cells, f"{known.size_mb:.1f}", f"{memory:.0f}", f"{1e3 * ttft:.1f} ms", f"{1e3 * tpot:.2f} ms"]


def _shown(measured: Measured | None, task: str) -> str:
    if measured is None:
        return "-"
    quality = measured.quality[task]
    return f"{quality.wer:.1%}" if quality.measure == "WER" else f"{quality.measure} {quality.value:.2f}"


def _error(measured: Measured, task: str) -> float:
    quality = measured.quality[task]
    return quality.value if quality.measure == "WER" else -quality.value


def _latency(one: Found) -> float:
    """The lower of two measurements of the same sizes: what else a machine does only makes it longer."""
    return min(measured.cost.latency_s for measured in (one.before, one.after) if measured)
