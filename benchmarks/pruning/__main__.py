"""What shrinking costs, as a curve: python -m benchmarks.pruning CHECKPOINT DATA --train ANNOTATION --out FOLDER

Layers of the LLM and of Whisper are left out, dropped or merged, or Whisper's matrices made of low rank; each point is
exported and measured before and behind a short training, which is the same for all, and for the whole model. Every
step that is done is kept in FOLDER, so that a run that was cut goes on. The curve is a table, results.json and
curve.png.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from benchmarks.pruning.page import curve_table, recommendation
from benchmarks.pruning.points import WHOLE, Point, points_of
from benchmarks.pruning.steps import Curve, Found
from salmonrun.runtime.commands.main import guarded
from salmonrun.training.checkpoint import open_checkpoint
from salmonrun.training.data.annotation import read_annotation
from salmonrun.training.evaluation.report.picture import draw_trade_off
from salmonrun.training.evaluation.report.report import Report, ReportOptions, first_of_each_task


def main() -> None:
    """Make what is missing, measure, and print."""
    arguments = _parser().parse_args()
    entries, problems = read_annotation(arguments.data)
    chosen = [entry for entry in entries if not arguments.tasks or entry.task in arguments.tasks]
    if problems or not chosen:
        raise SystemExit("\n".join(map(str, problems)) or f"{arguments.data} has no entry of {arguments.tasks}")
    points = points_of(open_checkpoint(arguments.checkpoint).config, arguments.shares)
    if arguments.only:
        points = [point for point in points if point.name in (WHOLE, *arguments.only)]
    options = ReportOptions(threads=arguments.threads, time_limit_s=10.0)
    report = Report(arguments.out / "report", first_of_each_task(chosen, arguments.limit), options)
    curve = Curve(
        root=arguments.out,
        checkpoint=arguments.checkpoint,
        calibration=arguments.calibration or arguments.train,
        recipe=arguments.recipe,
        options=(f"data.train.0.annotation={arguments.train}", *arguments.options),
        export=tuple(arguments.export.split()),
        threads=arguments.threads,
    )
    found = _found(curve, points, report, heal=not arguments.unhealed)
    found = curve.timed(found, arguments.rounds, arguments.time_limit)
    _write(arguments.out, found)
    task = next(iter({entry.task: None for entry in chosen}))
    print(f"{curve_table(found, task)}\n\n{recommendation(found, task, arguments.slack)}")
    _draw(arguments.out / "curve.png", found, task)


def _draw(file: Path, found: Sequence[Found], task: str) -> None:
    """Each point where it is after it was healed, with where it was before; or there, if it was not healed."""
    known = [(one, last) for one in found if (last := one.after or one.before)]
    if not known:
        sys.exit("error: no point could be measured; each said why above")
    names = [replace(last, name=one.point.name, cost=one.cost or last.cost) for one, last in known]
    draw_trade_off(file, names, [task], before=[one.before if one.after else None for one, _ in known])


def _found(curve: Curve, points: Sequence[Point], report: Report, heal: bool) -> list[Found]:
    """All points as they are, in minutes; then healed, the longer work."""
    found: dict[Point, Found] = {}
    passes = (False, True) if heal else (False,)
    with tqdm(total=len(points) * len(passes), unit="step") as bar:
        for healing in passes:
            for point in points:
                bar.set_postfix_str(f"{point.name}, healed" if healing else point.name)
                found[point] = curve.measure(point, report, healing)
                bar.update()
                _write(curve.root, list(found.values()))
    return list(found.values())


def _write(out: Path, found: list[Found]) -> None:
    rows = [asdict(one) for one in found]
    for row in rows:
        for measured in filter(None, (row["before"], row["after"])):
            del measured["answers"]
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, help="annotation that is measured on")
    parser.add_argument("--train", type=Path, required=True, help="annotation that is healed on")
    parser.add_argument("--calibration", type=Path, help="annotation that layers are chosen on (default: --train)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/heal.yaml"), help="default: recipes/heal.yaml")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the recipe")
    parser.add_argument(
        "--export",
        default="--encoder-precision int8 --llm-precision int8 --encoder native --decoder native",
        help="options of salmonrun export, in one argument (default: %(default)s)",
    )
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4], help="of the layers (default: 0.1 to 0.4)"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="points by their names, and the whole model")
    parser.add_argument("--tasks", nargs="+", help="that are measured (default: all); the first makes the curve")
    parser.add_argument("--limit", type=int, help="only the first so many entries of each task")
    parser.add_argument("--unhealed", action="store_true", help="train none that is not trained yet")
    parser.add_argument("--slack", type=float, default=0.01, help="WER that may be lost (default: 0.01)")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--time-limit", type=float, default=5.0, help="seconds of each latency (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="latencies of a point, all in turn (default: 3)")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
