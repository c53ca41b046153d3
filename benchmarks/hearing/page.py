"""What was measured, as markdown."""

from collections.abc import Sequence

import numpy as np

from benchmarks.hearing.attention import Heard
from benchmarks.hearing.scores import Score
from benchmarks.tables import table

# What it is called -> field of Score.
DELAYS = {"first text after the beginning": "first_text_s", "final text after the end": "final_text_s"}
Table = dict[str, dict[str, Score]]  # scene -> way -> score


def understanding(scores: Table) -> str:
    """Scenes down, ways across, and the delays of streams below."""
    ways = list(dict.fromkeys(way for row in scores.values() for way in row))
    rows = [[scene, *(_score(row[way]) for way in ways)] for scene, row in scores.items()]
    for label, field in DELAYS.items():
        delays = [[delay for row in scores.values() for delay in getattr(row[way], field)] for way in ways]
        rows.append([f"{label}, median / 95 %", *map(_seconds, delays)])
    return table(["words wrong", *ways], rows)


def attention(heard: dict[str, dict[str, Heard]]) -> str:
    """Situations down, detectors and rules across."""
    ways = list(next(iter(heard.values())))
    rows = [[situation, *(_heard(row[way]) for way in ways)] for situation, row in heard.items()]
    return table(["people", *ways], rows)


def _score(score: Score) -> str:
    counts = [(score.lost, "lost"), (score.doubled, "doubled"), (score.invented, "invented")]
    rate = f"{100 * score.word_error_rate:.1f} %" if score.words else f"{score.errors} words"
    return ", ".join([rate, *(f"{count} {what}" for count, what in counts if count)])


def _heard(heard: Heard) -> str:
    cut = f", {heard.beginning_cut} without their beginning" if heard.beginning_cut else ""
    starts = heard.false_starts_in_10_minutes
    return f"{heard.not_heard} of {heard.trials} not heard{cut}; {starts:.1f} false starts in 10 min"


def _seconds(delays: Sequence[float]) -> str:
    if not delays:
        return "-"
    return f"{np.median(delays):.2f} s / {np.percentile(delays, 95):.2f} s"
