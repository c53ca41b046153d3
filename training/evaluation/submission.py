"""The reference competition's CSV, `testset_id,text`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.data.annotation import Entry, Problem
from salmonrun.training.evaluation.answers import Answered, write_csv

# What pandas reads as a missing value, which the competition's validator refuses, among lower-case texts.
READ_AS_MISSING = {"", "nan", "-nan", "null", "n/a"}


def check_testset_ids(entries: Sequence[Entry]) -> None:
    """Raise unless every entry has a `testset_id` of its own.

    Raises:
        CheckpointError: names the first entry whose id is missing or used before.
    """
    uses = Counter(entry.testset_id for entry in entries)
    for entry in entries:
        if not entry.testset_id:
            reason = 'testset_id is missing; a submission needs one, such as "test0000", in every entry'
        elif uses[entry.testset_id] > 1:
            reason = f"testset_id {entry.testset_id!r} is that of {uses[entry.testset_id]} entries; it must be unique"
        else:
            continue
        raise CheckpointError(str(Problem(entry.dataset, entry.index, reason)))


def write_submission(path: Path, entries: Sequence[Entry], answers: Sequence[Answered]) -> None:
    """Write `testset_id,text` in the order of the entries, in lower case as the published evaluator does.

    A text that pandas would read as a missing value, an empty one above all, gets a space at its end.
    """
    rows = [
        (entry.testset_id, _readable(answer.hypothesis.lower())) for entry, answer in zip(entries, answers, strict=True)
    ]
    write_csv(path, ("testset_id", "text"), rows)


def _readable(text: str) -> str:
    return f"{text} " if text in READ_AS_MISSING else text
