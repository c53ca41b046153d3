"""What was measured of several models, as text: a row for each, beside the first the ratios."""

from collections.abc import Sequence

from salmonrun.training.evaluation.report.measured import Measured, Quality


def format_report(measured: Sequence[Measured], shares: Sequence[float]) -> str:
    """A row a model, as the reference team's table has it: quality by task, memory, latency; and the size.

    Args:
        measured: the baseline first.
        shares: of the baseline's tokens that each answers, too.
    """
    baseline = measured[0]
    tasks = list(baseline.quality)
    titles = [f"{task} {baseline.quality[task].measure}" for task in tasks]
    columns = [
        [title, *(_quality(one.quality[task]) for one in measured)] for title, task in zip(titles, tasks, strict=True)
    ]
    columns.append(["agreement", *(f"{share:.1%}" for share in shares)])
    for title, value, unit in (
        ("memory", lambda one: one.peak_mb, "MiB"),
        ("first token", lambda one: 1e3 * one.cost.ttft_s, "ms"),
        ("per token", lambda one: 1e3 * one.cost.tpot_s, "ms"),
        ("latency", lambda one: one.latency_ms, "ms"),
        ("size", lambda one: one.size_mb, "MiB"),
    ):
        values = [value(one) for one in measured]
        columns.append([title, *(f"{_digits(v)} {unit}{_ratio(v, values[0], i)}" for i, v in enumerate(values))])
    columns.insert(0, ["", *(one.name for one in measured)])
    columns = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]
    columns[0] = [cell.strip().ljust(len(cell)) for cell in columns[0]]
    lines = ["  ".join(row) for row in zip(*columns, strict=True)]
    return "\n".join([*lines, "", *_explained(measured)])


def _quality(quality: Quality) -> str:
    return f"{quality.wer:.1%}" if quality.measure == "WER" else f"{quality.value:.3f}"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float, whole: float, place: int) -> str:
    return f" ({value / whole:.2f})" if place else " " * 7


def _explained(measured: Sequence[Measured]) -> list[str]:
    lines = [
        f"In brackets, times {measured[0].name}'s. WER after Whisper's English normalizer; agreement: share of the "
        f"tokens of {measured[0].name}'s answers.",
        "Memory: resident at most since loaded (of the GPU on one). Latency: 10 s of noise to the first token, and one "
        "more; medians.",
    ]
    if any(one.kind == "checkpoint" for one in measured):
        lines.append("Checkpoints run in PyTorch, float32, eager, on the CPU for memory and latency.")
    notes = {note: one.name for one in measured for note in one.cost.notes}
    return [*lines, *(f"{name}: {note}" for note, name in notes.items())]
