"""Quality of answers: word error rates, exact matches, and for captions CIDEr-D and, where it can be had, SPIDEr."""

import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jiwer
from whisper_normalizer.english import EnglishTextNormalizer

from salmonrun.runtime.errors import MissingExtraError
from salmonrun.training.evaluation.answers import Answered
from salmonrun.training.evaluation.cider import cider_d
from salmonrun.training.evaluation.tasks import CAPTION_TASKS

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class WordErrors(NamedTuple):
    """Substitutions, deletions and insertions, and the words of the reference."""

    errors: int
    words: int

    @property
    def rate(self) -> float:
        """Word error rate; with an empty reference, the number of words inserted."""
        return self.errors / max(1, self.words)


@dataclass(frozen=True)
class AnswerScore:
    """An answer with its word errors and, of a caption, its CIDEr-D."""

    row: Answered
    normal: WordErrors  # after Whisper's English normalizer
    spelled: WordErrors  # after `spell_digits`
    exact: bool  # equal after the normalizer; a caption, to any reference of its recording
    cider_d: float | None = None  # of captions


@dataclass(frozen=True)
class CaptionScore:
    """Quality of captions; all references of a recording count."""

    recordings: int
    references: int
    cider_d: float  # 0 to 10, mean over recordings
    spider: float | None  # (CIDEr-D + SPICE) / 2, both on PTB words, by aac-metrics
    spider_missing: str  # why there is none


@dataclass(frozen=True)
class TaskScore:
    """Quality on a task, over all its answers."""

    entries: int
    wer: float  # word error rate, micro-averaged, after Whisper's English normalizer
    wer_spelled: float  # the same after `spell_digits` instead: the normalizer makes one word of a string of digits
    exact: float  # share of answers equal to the reference after the normalizer
    rtf: float  # seconds computed per second of audio
    repeated: int  # answers that repeat themselves without end
    captions: CaptionScore | None  # of caption tasks
    answers: tuple[AnswerScore, ...]  # in the order of the answers


def score(rows: Sequence[Answered], nothing: str = "") -> TaskScore:
    """Score the answers to one task.

    Args:
        rows: the answers.
        nothing: what the model was trained to say where nothing is to be transcribed: as good as no text.
    """
    captions, ciders = _score_captions(rows) if rows[0].task in CAPTION_TASKS else (None, {})
    answers = tuple(_score_answers(rows, ciders, nothing))
    return TaskScore(
        entries=len(rows),
        wer=_pooled(answer.normal for answer in answers).rate,
        wer_spelled=_pooled(answer.spelled for answer in answers).rate,
        exact=sum(answer.exact for answer in answers) / len(rows),
        rtf=sum(row.took_s for row in rows) / max(1e-9, sum(row.audio_s for row in rows)),
        repeated=sum(row.repeated for row in rows),
        captions=captions,
        answers=answers,
    )


def word_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Errors of all pairs (reference, hypothesis) over the words of all references."""
    return _pooled(word_errors(reference, hypothesis) for reference, hypothesis in pairs).rate


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Fewest substitutions, deletions and insertions of words that make the hypothesis of the reference."""
    measured = jiwer.process_words([reference], [hypothesis])
    return WordErrors(
        measured.substitutions + measured.deletions + measured.insertions,
        measured.hits + measured.substitutions + measured.deletions,
    )


def spell_digits(text: str) -> str:
    """Lower-case words without punctuation; a word of digits alone is spelled out, digit by digit.

    Whisper's normalizer makes one word of a spoken string of digits, so that one wrong digit makes all of it wrong; it
    drops the leading zeros of digits that are written together, but not of spoken ones; and it keeps "7 0" apart from
    "70". Here "seven zero", "70", "7 0" and "7-0" all are "seven zero". Nothing else is changed: "seventy", "oh" and
    "7th" stay, so a number that one side has in words ("seventy") and the other in digits ("70") counts as wrong.
    """
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("\u2019", "'"))
    return " ".join(spelled for word in words for spelled in _spell(word))


def spider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """SPIDEr of the corpus by aac-metrics, which needs Java and models of its own.

    Raises:
        MissingExtraError: aac-metrics, its models or its Java are not there, or it failed.
    """
    try:
        import aac_metrics
    except ImportError as error:
        raise MissingExtraError(
            f"aac-metrics cannot be imported ({error}); "
            "pip install aac-metrics, run aac-metrics-download, install Java 8 to 13"
        ) from error
    lines = [" ".join(text.split()) for text in hypotheses]  # one line each: its tokenizer reads lines
    references = [[" ".join(text.split()) for text in captions] for captions in references]
    try:
        corpus, _ = aac_metrics.evaluate(lines, references, metrics=["spider"])
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        raise MissingExtraError(f"aac-metrics failed: {error}") from error
    return float(corpus["spider"])


def _score_answers(
    rows: Sequence[Answered], ciders: dict[tuple[str, str, str], float], nothing: str
) -> Iterator[AnswerScore]:
    normalizer = EnglishTextNormalizer()
    captions = {key: {normalizer(text) for text in texts} for key, (_, texts) in _by_recording(rows).items()}
    for row in rows:
        said = ["" if text == nothing else text for text in (row.reference, row.hypothesis)]
        reference, hypothesis = map(normalizer, said)
        yield AnswerScore(
            row,
            normal=word_errors(reference, hypothesis),
            spelled=word_errors(*map(spell_digits, said)),
            exact=hypothesis in (captions[row.asked] if row.asked in ciders else {reference}),
            cider_d=ciders.get(row.asked),
        )


def _score_captions(rows: Sequence[Answered]) -> tuple[CaptionScore, dict[tuple[str, str, str], float]]:
    """The corpus, and the CIDEr-D of each recording."""
    recordings = _by_recording(rows)
    hypotheses, references = zip(*recordings.values(), strict=True)
    ciders = cider_d(hypotheses, references)
    try:
        measured, missing = spider(hypotheses, references), ""
    except MissingExtraError as error:
        measured, missing = None, str(error)
    corpus = CaptionScore(len(recordings), len(rows), sum(ciders) / len(ciders), measured, missing)
    return corpus, dict(zip(recordings, ciders, strict=True))


def _by_recording(rows: Sequence[Answered]) -> dict[tuple[str, str, str], tuple[str, list[str]]]:
    """The answer about each recording, and all its references."""
    recordings: dict[tuple[str, str, str], tuple[str, list[str]]] = {}
    for row in rows:
        recordings.setdefault(row.asked, (row.hypothesis, []))[1].append(row.reference)
    return recordings


def _pooled(measured: Iterable[WordErrors]) -> WordErrors:
    errors, words = zip(*measured, strict=True)
    return WordErrors(sum(errors), sum(words))


def _spell(word: str) -> list[str]:
    return [DIGITS[int(digit)] for digit in word] if re.fullmatch("[0-9]+", word) else [word]
