"""`python -m training data {check,report}`: its options, and what it does with them."""

import argparse

from salmonrun.runtime.config import AudioConfig
from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.data.annotation import Entry, Problem, part_usable, read_annotation
from salmonrun.training.data.statistics import draw, measure
from salmonrun.training.model.config import load_config


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    data = commands.add_parser("data", help="look at annotations").add_subparsers(required=True, metavar="COMMAND")
    checking = data.add_parser(
        "check",
        help="report every entry that cannot be used",
        description="Check annotations and the headers of their recordings against a checkpoint's tasks and window.",
    )
    checking.add_argument("checkpoint", metavar="CHECKPOINT")
    checking.add_argument("annotation", metavar="ANNOTATION", nargs="+")
    checking.add_argument("--prefix", help="folder of relative paths (default: the annotation's own)")
    checking.set_defaults(run=_check)

    reporting = data.add_parser(
        "report",
        help="what there is: counts, durations, text lengths",
        description="Print counts, hours, durations, text lengths, sample rates and problems by data set and task.",
    )
    reporting.add_argument("annotation", metavar="ANNOTATION", nargs="+")
    reporting.add_argument("--prefix", help="folder of relative paths (default: the annotation's own)")
    reporting.add_argument(
        "--checkpoint", help="whose tasks and window entries must fit (default: any task, recordings up to 30 s)"
    )
    reporting.add_argument("--out", metavar="FILE.png", help="draw the distributions, too (needs matplotlib)")
    reporting.set_defaults(run=_report)


def _check(arguments: argparse.Namespace) -> str:
    config = load_config(arguments.checkpoint)
    problems: list[Problem] = []
    usable: list[Entry] = []
    for file in arguments.annotation:
        entries, malformed = read_annotation(file, arguments.prefix)
        good, bad = part_usable(entries, config.prompt, config.audio)
        usable += good
        problems += [*malformed, *bad]
    lines = [*map(str, problems), f"{len(usable)} of {len(usable) + len(problems)} entries can be used"]
    if problems:
        raise CheckpointError("\n".join(lines))
    return lines[-1]


def _report(arguments: argparse.Namespace) -> str:
    config = load_config(arguments.checkpoint) if arguments.checkpoint else None
    prompts, audio = (config.prompt, config.audio) if config else (None, AudioConfig())
    statistics = measure(arguments.annotation, arguments.prefix, prompts, audio)
    if not arguments.out:
        return statistics.table()
    draw(statistics, arguments.out)
    return f"{statistics.table()}\n{arguments.out}: chart of the distributions"
