"""A teacher's own answers as an annotation: what a student with another tokenizer can learn from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.data.annotation import Entry, is_too_long
from salmonrun.training.evaluation.answers import Answered
from salmonrun.training.evaluation.evaluate import Subject, evaluate
from salmonrun.training.evaluation.scores import spell_digits, word_errors


@dataclass(frozen=True)
class Choice:
    """Which answers are worth learning."""

    min_score: float | None = None  # mean log probability of the tokens; None: any
    max_wer: float | None = None  # of transcriptions that have a text in the data, digits spelled out; None: any

    def __post_init__(self) -> None:
        if self.min_score is not None and self.min_score > 0:
            raise ConfigError(f"min_score is {self.min_score:g}; a mean log probability is at most 0")
        if self.max_wer is not None and self.max_wer < 0:
            raise ConfigError(f"max_wer is {self.max_wer:g}; it must be at least 0")

    def reason_against(self, answer: Answered) -> str:
        """Why an answer is left out; empty if it is taken."""
        if not answer.hypothesis:
            return "empty"
        if answer.repeated:
            return "repeats itself"
        if self.min_score is not None and answer.score is not None and answer.score < self.min_score:
            return "below the score"
        if self.max_wer is not None and answer.task == "asr" and answer.reference:
            errors = word_errors(spell_digits(answer.reference), spell_digits(answer.hypothesis))
            if errors.rate > self.max_wer:
                return "too far from the text"
        return ""


@dataclass(frozen=True)
class Written:
    """What became of the entries."""

    taken: int
    left_out: dict[str, int]  # by the reason


def write_answers(
    teacher: Subject,
    entries: Sequence[Entry],
    out: str | Path,
    config: GenerationConfig,
    choice: Choice,
    progress: bool = False,
) -> Written:
    """Answer every entry and write an annotation with the answers in place of the texts.

    Answers go to `out` with .answers.jsonl in place of .json as they come; a run that was cut goes on where it stopped.

    Args:
        teacher: a checkpoint or a bundle.
        entries: with or without a text.
        out: the annotation, a .json.
        config: how tokens are chosen.
        choice: which answers are taken.
        progress: show a bar, on a terminal.

    Raises:
        CheckpointError: an entry cannot be used, or none is left.
        ConfigError: `out` is no .json.
    """
    out = Path(out)
    if out.suffix != ".json":
        raise ConfigError(f"{out} is to be an annotation: choose a name that ends in .json")
    out.parent.mkdir(parents=True, exist_ok=True)
    short = [entry for entry in entries if not is_too_long(entry, teacher.audio)]
    journal = out.with_suffix(".answers.jsonl")
    done = evaluate(teacher, short, journal, config, submission=True, progress=progress)
    left_out = {"longer than the teacher hears": len(entries) - len(short)}
    taken = []
    for entry, answer in zip(done.entries, done.answers, strict=True):
        reason = choice.reason_against(answer)
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            taken.append(_listed(entry, answer.hypothesis, out.parent))
    if not taken:
        raise CheckpointError(f"no answer is left to be learned; of {len(entries)} were {_count(left_out)}")
    temporary = out.with_name(f".{out.name}.partial")
    temporary.write_text(json.dumps({"annotation": taken}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(out)
    return Written(len(taken), {reason: count for reason, count in left_out.items() if count})


def _count(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)


def _listed(entry: Entry, text: str, folder: Path) -> dict[str, Any]:
    """An entry of an annotation in a folder."""
    first, *appended = (_named(path.resolve(), folder.resolve()) for path in entry.recordings)
    listed: dict[str, Any] = {"path": first, "text": text, "task": entry.task}
    if entry.question:
        listed["Q"] = entry.question
    if appended:
        listed["expand_wav"] = appended
    return listed


def _named(path: Path, folder: Path) -> str:
    """A recording as an annotation names it: from its folder on, or in full where it lies elsewhere."""
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
