"""Samples to figures: medians, quartiles, ratios within a round, shares of what the machine can do, errors."""

from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.peers.measure import Row
from benchmarks.peers.shapes import SHAPES

Json = dict[str, Any]
# What is the limit of what: the highest of these rates that was measured.
LIMITS = {
    "read": ("read_bytes_s", "read_huge_bytes_s"),
    "fp32": ("fp32_flop_s",),
    "bf16": ("bf16_flop_s",),
    "int8": ("int8_flop_s", "vnni_op_s", "amx_op_s"),
}
COMPARED_TASK = 1  # the prompt that is decoded from; the longest window


def summarize(rows: list[Row], limits: list[dict[str, float]]) -> Json:
    """The machine's limits and all rows, as JSON."""
    names = [key for key in limits[0] if key.endswith("_s")] if limits else []
    rates = {name: quartiles([sample[name] for sample in limits]) for name in names}
    references = {row.shape: row for row in rows if row.engine.reference}
    truths = {row.shape: row for row in rows if row.engine.truth}
    return {
        "limits": rates,
        "rows": [_row(row, references.get(row.shape), truths.get(row.shape), rates) for row in rows],
    }


def quartiles(values: list[float]) -> Json:
    """Median, first and third quartile, count."""
    first, median, third = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": median, "q1": first, "q3": third, "count": len(values)}


def _row(row: Row, reference: Row | None, truth: Row | None, rates: Json) -> Json:
    cases = {}
    for case, samples in row.samples.items():
        figures = quartiles(list(samples.values()))
        theirs = reference.samples.get(case, {}) if reference else {}
        ratios = [seconds / theirs[turn] for turn, seconds in samples.items() if turn in theirs]
        figures["ratio"] = quartiles(ratios) if ratios else None
        figures["share"] = _share(row, case, figures["median"], rates)
        cases[case] = figures
    engine = asdict(row.engine)
    compared, wrong = _compare(row, truth)
    return {
        "shape": row.shape,
        **{key: engine[key] for key in ("name", "peer", "kind", "arithmetic", "note", "options", "reference")},
        "failure": row.failure or wrong,
        "versions": row.loaded.get("versions", {}),
        "load_s": row.loaded.get("seconds"),
        "weight_bytes": row.loaded.get("weight_bytes"),
        "peak_rss": row.peak_rss,
        "error": compared[0] if compared else None,
        "correlation": compared[1] if compared else None,
        "cases": cases,
    }


def _share(row: Row, case: str, seconds: float, rates: Json) -> float | None:
    """Of the bandwidth when decoding, else of the rate of products in the engine's own arithmetic."""
    if not rates:
        return None
    best = max(
        rates[name]["median"] for name in LIMITS["read" if case == "decode" else row.engine.arithmetic] if name in rates
    )
    done = row.loaded["weight_bytes"] if case == "decode" else SHAPES[row.shape].flop(int(case.split()[1]))
    return float(done / seconds / best)


def _compare(row: Row, truth: Row | None) -> tuple[tuple[float, float] | None, str]:
    """Relative rms error and correlation of an output with the truth's, if there are both; and what is wrong."""
    ours, theirs = (found.outputs.get(COMPARED_TASK) if found else None for found in (row, truth))
    if ours is None or theirs is None:
        return None, ""
    x, y = (np.load(path).astype(np.float64) for path in (ours, theirs))
    if x.shape != y.shape or not np.isfinite(x).all():
        return None, f"computes something else: {x.shape}, PyTorch {y.shape}, finite: {np.isfinite(x).all()}"
    error = np.linalg.norm(x - y) / np.linalg.norm(y)
    return (float(error), float(np.corrcoef(x.ravel(), y.ravel())[0, 1])), ""
