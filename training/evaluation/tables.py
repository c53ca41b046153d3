"""What `training evaluate` shows of its scores: a line a task, the worst answers, and a table of all."""

import math
from collections.abc import Sequence
from pathlib import Path

from salmonrun.training.evaluation.answers import Answered, write_csv
from salmonrun.training.evaluation.reliability import rejection_scores
from salmonrun.training.evaluation.scores import AnswerScore, TaskScore

LENGTHS_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, math.inf)  # ends of the bins that errors are told by
WORST = 5  # shown of each task
TEXT_COLUMNS = ("audio", "task", "question", "reference", "hypothesis")
ERROR_COLUMNS = ("errors", "words", "wer", "errors_spelled", "words_spelled", "wer_spelled")
HEADER = (*TEXT_COLUMNS, *ERROR_COLUMNS, "exact", "cider_d", "score", "seconds")


def format_scores(scores: dict[str, TaskScore]) -> str:
    """A line for each task, then its worst answers."""
    lines = [f"{'task':<20}{'entries':>8}{'WER':>9}{'WER spelled':>13}{'exact':>9}{'CIDEr-D':>9}{'RTF':>8}"]
    for task, result in scores.items():
        rates = f"{'-':>9}{'-':>13}" if result.captions else f"{result.wer:>9.1%}{result.wer_spelled:>13.1%}"
        cider = f"{result.captions.cider_d:>9.3f}" if result.captions else f"{'-':>9}"
        lines.append(f"{task:<20}{result.entries:>8}{rates}{result.exact:>9.1%}{cider}{result.rtf:>8.3f}")
    lines.append("WER: after Whisper's English normalizer; WER spelled: without it, digits as words (70: seven zero)")
    for task, result in scores.items():
        lines += (
            _lengths(task, result) + _repeated(task, result) + _captions(task, result) + _worst(task, result.answers)
        )
    return "\n".join(lines)


def format_rejected(rows: Sequence[Answered], threshold: float, nothing: str = "") -> str:
    """How many answers are below the bundle's threshold, or say that there is `nothing` to be transcribed."""
    scores = rejection_scores(rows, nothing)
    below, refused = sum(score < threshold for score in scores), sum(score == -math.inf for score in scores)
    share = f"{below / max(1, len(scores)):.1%}"
    how = f", {refused} of them by an answer of {nothing!r}" if refused else ""
    return f"rejected at the bundle's threshold {threshold:.3f}: {below} of {len(scores)} answers ({share}){how}"


def write_table(path: Path, scores: dict[str, TaskScore]) -> None:
    """A CSV with a line for every answer; columns that do not apply to a task are empty."""
    write_csv(path, HEADER, [_table_row(one) for result in scores.values() for one in result.answers])


def _lengths(task: str, result: TaskScore) -> list[str]:
    """WER of recordings of several lengths, where there are such: trimmed windows, say, change the short ones most."""
    bins: dict[float, list[AnswerScore]] = {}
    for one in result.answers if result.captions is None else ():
        bins.setdefault(next(edge for edge in LENGTHS_S if one.row.audio_s <= edge), []).append(one)
    if len(bins) < 2:
        return []
    rates = []
    for edge in sorted(bins):
        errors, words = (sum(one.normal[i] for one in bins[edge]) for i in (0, 1))
        name = f"to {edge:g} s" if math.isfinite(edge) else "longer"
        rates.append(f"{name} {errors / max(1, words):.1%} of {len(bins[edge])}")
    return [f"{task}: WER by length of the recordings: {', '.join(rates)}"]


def _repeated(task: str, result: TaskScore) -> list[str]:
    return [f"{task}: {result.repeated} answers repeat themselves without end"] if result.repeated else []


def _captions(task: str, result: TaskScore) -> list[str]:
    captions = result.captions
    if captions is None:
        return []
    counts = f"{captions.recordings} recordings, {captions.references} references"
    lines = [f"{task}: CIDEr-D {captions.cider_d:.3f} of 10, on words of our own tokenization ({counts})"]
    if captions.recordings == 1:
        lines.append(f"{task}: CIDEr-D is always 0 with a single recording: every n-gram is as frequent as can be")
    if captions.spider is None:
        return [*lines, f"{task}: SPIDEr was not computed: {captions.spider_missing}"]
    return [*lines, f"{task}: SPIDEr {captions.spider:.3f}, by aac-metrics"]


def _worst(task: str, answers: Sequence[AnswerScore]) -> list[str]:
    """The answers with the most wrong words, captions by CIDEr-D; those without a fault are left out.

    Not by the rate: a single word that is wrong is 100 %, and says the least.
    """
    faulty = [one for one in answers if not one.exact]
    faulty.sort(key=lambda one: (-one.normal.errors, -one.normal.rate) if one.cider_d is None else (one.cider_d, 0))
    lines = [f"\n{task}: the worst answers"] if faulty else []
    for one in faulty[:WORST]:
        errors = f"{one.normal.errors} wrong, WER {one.normal.rate:.1%}"
        rate = errors if one.cider_d is None else f"CIDEr-D {one.cider_d:.3f}"
        lines.append(f"  {rate}  {one.row.audio}")
        lines += [f"    reference:  {one.row.reference}", f"    hypothesis: {one.row.hypothesis}"]
    return lines


def _table_row(one: AnswerScore) -> tuple[object, ...]:
    row = one.row
    errors: tuple[object, ...] = ("",) * len(ERROR_COLUMNS)
    if one.cider_d is None:
        errors = (*one.normal, f"{one.normal.rate:.4f}", *one.spelled, f"{one.spelled.rate:.4f}")
    cider = "" if one.cider_d is None else f"{one.cider_d:.4f}"
    texts = (row.audio, row.task, row.question, row.reference, row.hypothesis)
    confidence = "" if row.score is None else f"{row.score:.4f}"
    return (*texts, *errors, int(one.exact), cider, confidence, f"{row.took_s:.3f}")
