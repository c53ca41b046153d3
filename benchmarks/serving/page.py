"""Tables of what was measured."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.serving.requests import Answered
from benchmarks.serving.streams import Told
from benchmarks.tables import table

QUANTILES = (50, 90, 95, 99)


def streams_table(runs: Mapping[str, Sequence[tuple[int, float, Told]]]) -> str:
    """Of (streams, seconds of each, what they were told), by how they were served: Riva's form."""
    header = [
        "",
        "streams",
        "trials",
        *(f"{what} {which}" for what in ("lag", "final") for which in _names()),
        "RTFX",
        "real time",
    ]
    return table(header, [[how, *_stream_row(*run)] for how, found in runs.items() for run in found])


def best(runs: Sequence[tuple[int, float, Told]]) -> int:
    """The most streams that were in real time, and all fewer ones that were tried, too; 0: none."""
    most = 0
    for streams, _, told in sorted(runs, key=lambda run: run[0]):
        if not told.real_time:
            break
        most = streams
    return most


def requests_table(runs: Sequence[tuple[str, int, Answered]]) -> str:
    """Of (how it serves, clients, what was answered)."""
    rows = [
        [how, str(clients), f"{run.audio_s / run.took_s:.1f}", f"{len(run.request_s) / run.took_s:.2f}", *_spread(run)]
        for how, clients, run in runs
    ]
    return table(["", "clients", "RTFX", "requests a second", *_names()], rows)


def _stream_row(streams: int, seconds: float, told: Told) -> list[str]:
    lost = f"no: {told.lost} lost" if told.lost else "no"
    factor = streams * seconds * told.trials / told.took_s
    return [
        str(streams),
        str(told.trials),
        *_cells(told.lag_s),
        *_cells(told.final_s),
        f"{factor:.1f}",
        "yes" if told.real_time else lost,
    ]


def _names() -> list[str]:
    return ["avg", *(f"p{quantile}" for quantile in QUANTILES)]


def _spread(run: Answered) -> list[str]:
    return _cells(run.request_s)


def _cells(values: Sequence[float]) -> list[str]:
    """In milliseconds."""
    if not values:
        return ["-"] * (1 + len(QUANTILES))
    found = [float(np.mean(values)), *(float(np.percentile(values, quantile)) for quantile in QUANTILES)]
    return [f"{1000 * value:.0f} ms" for value in found]
