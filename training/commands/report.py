"""`salmonrun report`: its options, and what it does with them."""

import argparse
import sys
from pathlib import Path

from salmonrun.runtime.commands.options import add_device_argument
from salmonrun.runtime.errors import CheckpointError, MissingExtraError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Set models beside each other: quality on your recordings, memory, latency, size, and ratios to the first, the "
        "baseline. Each bundle is measured in a process of its own. Prints a table, and writes report.json and "
        "report.png (quality against each cost, the Pareto front) into --out; a run that was cut goes on where it "
        "stopped, and a further model is added to those that are known."
    )
    parser.epilog = "example: %(prog)s whole=whole-bundle/ pruned=pruned-bundle/ --data test.json --out report"
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="bundles or checkpoints, or NAME=FOLDER; the first is the baseline"
    )
    parser.add_argument("--data", required=True, metavar="ANNOTATION", help="recordings with their answers")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--prefix", help="folder of relative paths in the annotation (default: its own)")
    parser.add_argument("--task", action="append", dest="tasks", help="only entries of it; may be repeated")
    parser.add_argument("--limit", type=int, help="only the first so many entries of each task")
    add_device_argument(parser)
    parser.add_argument("--threads", type=int, help="at most, and by default, all usable cores")
    parser.add_argument("--num-beams", type=int, default=1, help="default: 1, greedy")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="default: 200")
    parser.add_argument(
        "--time-limit", type=float, default=20.0, metavar="SECONDS", help="of a model's latency (default: 20)"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from salmonrun.runtime.cores import thread_count
    from salmonrun.training.commands.quiet import quiet_transformers
    from salmonrun.training.data.annotation import read_annotation
    from salmonrun.training.evaluation.report.models import name_models
    from salmonrun.training.evaluation.report.picture import draw_trade_off
    from salmonrun.training.evaluation.report.report import (
        Report,
        ReportOptions,
        agreements,
        first_of_each_task,
        measure_all,
        write_report,
    )
    from salmonrun.training.evaluation.report.table import format_report
    from salmonrun.training.evaluation.tasks import is_of_task

    quiet_transformers()
    models = name_models(arguments.models)
    entries, problems = read_annotation(arguments.data, arguments.prefix)
    if problems:
        raise CheckpointError("\n".join(map(str, problems)))
    wanted = arguments.tasks or [None]
    chosen = [entry for entry in entries if any(is_of_task(entry.task, task) for task in wanted)]
    if not chosen:
        raise CheckpointError(f"{arguments.data} has no entry of {arguments.tasks or 'any task'}")
    options = ReportOptions(
        threads=thread_count(arguments.threads),
        device=arguments.device,
        max_new_tokens=arguments.max_new_tokens,
        num_beams=arguments.num_beams,
        time_limit_s=arguments.time_limit,
    )
    out = Path(arguments.out)
    report = Report(out, first_of_each_task(chosen, arguments.limit), options)
    measured = measure_all(report, models, lambda text: print(text, file=sys.stderr), progress=True)
    shares = agreements(models, measured)
    write_report(out / "report.json", measured, shares)
    print(f"{format_report(measured, shares)}\n\n{out}/report.json: the same")
    try:
        draw_trade_off(out / "report.png", measured, list(measured[0].quality))
        print(f"{out}/report.png: quality against what it costs")
    except MissingExtraError as error:  # hours of measuring are not lost for it
        print(f"no picture: {error}", file=sys.stderr)
    return 0
