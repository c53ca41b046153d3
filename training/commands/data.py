"""`salmonrun data {check,report}`: its options, and what it does with them."""

import argparse
from typing import TYPE_CHECKING

from salmonrun.runtime.config import AudioConfig
from salmonrun.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from salmonrun.training.data.annotation import Entry, Problem


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    data = parser.add_subparsers(required=True, metavar="COMMAND")
    checking = data.add_parser(
        "check",
        help="report every entry that cannot be used",
        description="Check annotations and the headers of their recordings against a checkpoint's tasks and window.",
    )
    checking.add_argument("checkpoint", metavar="CHECKPOINT")
    checking.add_argument("annotation", metavar="ANNOTATION", nargs="+")
    checking.add_argument("--prefix", help="folder of relative paths (default: the annotation's own)")
    checking.add_argument("--lenient", action="store_true", help="ignore keys that are not known, with a warning")
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


def _check(arguments: argparse.Namespace) -> int:
    from salmonrun.training.data.annotation import part_usable, read_annotation
    from salmonrun.training.model.config import load_config

    config = load_config(arguments.checkpoint)
    problems: list[Problem] = []
    usable: list[Entry] = []
    for file in arguments.annotation:
        entries, malformed = read_annotation(file, arguments.prefix, arguments.lenient)
        good, bad = part_usable(entries, config.prompt, config.audio)
        usable += good
        problems += [*malformed, *bad]
    lines = [*map(str, problems), f"{len(usable)} of {len(usable) + len(problems)} entries can be used"]
    if problems:
        raise CheckpointError("\n".join(lines))
    print(lines[-1])
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from salmonrun.training.data.statistics import draw, measure
    from salmonrun.training.model.config import load_config

    config = load_config(arguments.checkpoint) if arguments.checkpoint else None
    prompts, audio = (config.prompt, config.audio) if config else (None, AudioConfig())
    statistics = measure(arguments.annotation, arguments.prefix, prompts, audio)
    if arguments.out:
        draw(statistics, arguments.out)
    print(statistics.table())
    if arguments.out:
        print(f"{arguments.out}: chart of the distributions")
    return 0
