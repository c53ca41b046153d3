"""`salmonrun evaluate`: its options, and what it does with them."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from salmonrun.runtime.commands.options import add_device_argument
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.evaluation.tasks import MODES, SUBMISSIONS, TASK_GROUPS, is_of_task

if TYPE_CHECKING:
    from salmonrun.training.data.annotation import Entry
    from salmonrun.training.evaluation.evaluate import Evaluation, Subject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Answer every entry of an annotation. Prints word error rates, exact matches, CIDEr-D of captions (SPIDEr "
        "where aac-metrics is installed), speed and the worst answers, and writes a table of all beside --out. Answers "
        "go to --out as they come; a run that was cut goes on where it stopped."
    )
    parser.epilog = (
        "example: %(prog)s bundle/ test.json --mode submission_aac --out aac.jsonl --csv aac.csv --num-beams 4"
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint or a bundle")
    parser.add_argument("annotation", metavar="ANNOTATION")
    parser.add_argument("--prefix", help="folder of relative paths (default: the annotation's own)")
    which = parser.add_mutually_exclusive_group()
    groups = "; ".join(f"{name} stands for {', '.join(tasks)}" for name, tasks in TASK_GROUPS.items())
    which.add_argument("--task", help=f"only entries of this task (default: all); {groups}")
    which.add_argument(
        "--mode",
        choices=tuple(MODES),
        help="the competition's: its task; submission_* needs no texts and scores nothing",
    )
    parser.add_argument("--lenient", action="store_true", help="ignore keys that are not known, with a warning")
    parser.add_argument("--limit", type=int, help="only the first so many entries")
    parser.add_argument("--out", required=True, metavar="FILE", help="answers as JSON lines")
    parser.add_argument("--csv", metavar="FILE", help="answers as testset_id,text, which submission_* asks for")
    parser.add_argument(
        "--reliability", metavar="PNG", help="draw how often answers of a score are right, and what a threshold rejects"
    )
    parser.add_argument(
        "--out-of-domain",
        metavar="ANNOTATION",
        help="recordings the model should not answer about, for --reliability: their answers should be rejected; "
        "entries of the same tasks",
    )
    add_device_argument(parser)
    parser.add_argument("--threads", type=int, help="at most, and by default, all usable cores")
    parser.add_argument("--num-beams", type=int, default=1, help="default: 1, greedy")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="default: 200")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Evaluate, and write the files."""
    from salmonrun.training.commands.quiet import quiet_transformers
    from salmonrun.training.evaluation.evaluate import evaluate, open_subject
    from salmonrun.training.evaluation.submission import check_testset_ids, write_submission
    from salmonrun.training.evaluation.tables import format_rejected, format_scores, write_table

    quiet_transformers()
    out, submission = Path(arguments.out), arguments.mode in SUBMISSIONS
    if submission and not arguments.csv:
        raise ConfigError(f"--mode {arguments.mode} writes a submission; say where to with --csv FILE")
    _check_picture(arguments, submission)
    entries = _chosen(arguments)
    if submission:
        check_testset_ids(entries)
    config = GenerationConfig(max_new_tokens=arguments.max_new_tokens, num_beams=arguments.num_beams)
    subject = open_subject(arguments.model, arguments.device, arguments.threads)
    done = evaluate(subject, entries, out, config, submission=submission, progress=True)
    if done.skipped:
        print("\n".join(map(str, done.skipped)), file=sys.stderr)
        print(f"{len(done.skipped)} of {len(entries)} entries are skipped: too long for this model")
    if arguments.csv:
        write_submission(Path(arguments.csv), done.entries, done.answers)
        empty = sum(not answer.hypothesis for answer in done.answers)
        print(f"{arguments.csv}: {len(done.answers)} answers, {empty} of them empty")
    if not submission:
        table = out.with_suffix(".utterances.csv")
        write_table(table, done.scores)
        print(f"{format_scores(done.scores)}\n\n{table}: scores of every answer")
    if subject.threshold is not None:
        print(format_rejected(done.answers, subject.threshold, subject.prompts.nothing))
    if arguments.reliability:
        _draw_picture(arguments, subject, config, done)
    return 0


def _check_picture(arguments: argparse.Namespace, submission: bool) -> None:
    """Refuse before, and not after, all is answered what cannot be drawn."""
    if arguments.out_of_domain and not arguments.reliability:
        raise ConfigError("--out-of-domain is for the picture; say where to with --reliability PNG")
    if not arguments.reliability:
        return
    if submission:
        raise ConfigError(f"--mode {arguments.mode} has no texts: without them it is not known which answers are right")
    from salmonrun.runtime.picture import load_figure

    load_figure("--reliability")


def _draw_picture(
    arguments: argparse.Namespace, subject: "Subject", config: GenerationConfig, done: "Evaluation"
) -> None:
    """Answer about the recordings that are out of domain, too, if there are any, and draw."""
    from salmonrun.training.evaluation.evaluate import evaluate
    from salmonrun.training.evaluation.reliability import draw_reliability, rejection_scores
    from salmonrun.training.evaluation.tables import format_rejected

    scored = [(one.row.score, one.exact) for result in done.scores.values() for one in result.answers]
    known = [(score, exact) for score, exact in scored if score is not None]
    nothing = subject.prompts.nothing
    other: list[float] = []
    if arguments.out_of_domain:
        out = Path(arguments.out).with_suffix(".out-of-domain.jsonl")
        entries = _of_task(arguments.out_of_domain, _read(arguments.out_of_domain, None, arguments.lenient), arguments)
        strangers = evaluate(subject, entries, out, config, submission=True, progress=True).answers
        other = rejection_scores(strangers, nothing)
        if subject.threshold is not None:
            print(f"out of domain: {format_rejected(strangers, subject.threshold, nothing)}")
    scores, exact = zip(*known, strict=True) if known else ((), ())
    speech = rejection_scores(done.answers, nothing)
    draw_reliability(arguments.reliability, scores, exact, speech, other, subject.threshold)
    print(f"{arguments.reliability}: reliability of the scores")


def _chosen(arguments: argparse.Namespace) -> list["Entry"]:
    """The entries asked for.

    Raises:
        CheckpointError: an entry is malformed, or none is of the task.
    """
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError(f"--limit is {arguments.limit}; it must be at least 1")
    entries = _read(arguments.annotation, arguments.prefix, arguments.lenient)
    return _of_task(arguments.annotation, entries, arguments)[: arguments.limit]


def _of_task(annotation: str, entries: list["Entry"], arguments: argparse.Namespace) -> list["Entry"]:
    wanted = MODES[arguments.mode] if arguments.mode else arguments.task
    chosen = [entry for entry in entries if is_of_task(entry.task, wanted)]
    if not chosen:
        tasks = ", ".join(sorted({entry.task for entry in entries})) or "none"
        raise CheckpointError(f"{annotation} has no entry of task {wanted!r}; its tasks are: {tasks}")
    return chosen


def _read(annotation: str, prefix: str | None, lenient: bool) -> list["Entry"]:
    from salmonrun.training.data.annotation import read_annotation

    entries, problems = read_annotation(annotation, prefix, lenient)
    if problems:
        raise CheckpointError("\n".join(map(str, problems)))
    return entries
