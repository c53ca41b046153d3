"""Did a change of the code change anything a user can see, and what does it cost?

    python -m benchmarks.commits.compare BASE [--tokens] [--latency] [--only demo,random] [--shape demo,1b-llm]

The commit BASE and the files as they lie here, each in its own process with its own export of the same checkpoints.
With --tokens both are asked everything in every way; ends with 1 if an answer differs. With --latency both are measured
in turn. Checkpoints and bundles stay in build/commits, and so does results.json with all answers and all times.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.commits import tables
from benchmarks.commits.bundles import export, same_weights_and_graphs
from benchmarks.commits.cases import KINDS, Json
from benchmarks.commits.checkouts import HERE, Checkout, both
from benchmarks.commits.latency import Method, measure
from benchmarks.commits.models import MODELS, SHAPES, Model, demo, take_demo
from benchmarks.commits.tokens import Outcome, compare
from benchmarks.peers.machine import machine
from benchmarks.peers.processes import Worker, WorkerError, closing_all
from salmonrun.runtime.commands.main import guarded
from salmonrun.runtime.cores import usable_cores


def main(argv: list[str] | None = None) -> int:
    """Check out, export, ask, compare; 1 if an answer differs, 2 if that could not be found out."""
    arguments = _parser().parse_args(argv)
    root = arguments.root.absolute()
    try:
        with both(arguments.base) as checkouts:
            results = run(checkouts, arguments, root)
    except (ValueError, OSError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    output = arguments.json or root / "results.json"
    output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{output} has everything")
    return 1 if results.get("tokens", {}).get("summary", {}).get("differ") else 0


def run(checkouts: Sequence[Checkout], arguments: argparse.Namespace, root: Path) -> Json:
    """What was asked for, as JSON; tables are printed."""
    print(" / ".join(checkout.describe() for checkout in checkouts))
    asked = arguments.only if arguments.tokens or not arguments.latency else []
    timed = arguments.shape if arguments.latency else []
    needed = list({model.name: model for model in (*asked, *timed)}.values())
    if any(model.checkpoint is demo for model in needed):
        take_demo(checkouts[0].path, root / "checkpoints")
    bundles = {
        checkout.name: export(
            checkout, needed, root, arguments.threads, arguments.keep_bundles and checkout.name == "new"
        )
        for checkout in checkouts
    }
    results: Json = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine(),
        "checkouts": [asdict(checkout) | {"path": str(checkout.path)} for checkout in checkouts],
        "bundles": {name: {model: str(path) for model, path in own.items()} for name, own in bundles.items()},
    }
    results["same_bundles"] = _bundles(bundles)
    workers: dict[str, Worker] = {}
    with closing_all(workers):
        for checkout in checkouts:
            workers[checkout.name] = checkout.worker(arguments.threads, root / "logs" / f"{checkout.name}.log")
        if asked:
            outcomes = compare(asked, workers, bundles, root, arguments.threads, arguments.kind)
            results["tokens"] = _tokens(outcomes)
        if timed:
            results["latency"] = _latency(timed, workers, bundles, root, arguments)
    return results


def _bundles(bundles: dict[str, dict[str, Path]]) -> dict[str, bool]:
    """Print and return which are the same, which they need not be."""
    base, new = bundles.values()
    same = {name: same_weights_and_graphs(base[name], new[name]) for name in base}
    others = [name for name, equal in same.items() if not equal]
    print(
        f"{len(same) - len(others)} of {len(same)} bundles have the same weights and graphs"
        f"{'; not ' if others else ''}{', '.join(others)}"
    )
    return same


def _tokens(outcomes: Sequence[Outcome]) -> Json:
    """Print and return."""
    summary = tables.tokens_summary(outcomes)
    lines = tables.differences_list(outcomes)
    print(tables.tokens_table(outcomes), *lines[: tables.SHOWN], sep="\n")
    if len(lines) > tables.SHOWN:
        print(f"... and {len(lines) - tables.SHOWN} more")
    print(
        f"{summary['answers']} answers, {summary['differ']} differ ({summary['near_ties']} of them near-ties, "
        f"{summary['other_audio']} about other parts of a recording, {summary['notes']} in nothing but their notes), "
        f"{summary['errors']} are errors in both"
    )
    cases = [
        {
            "model": outcome.model.name,
            "case": outcome.case.name,
            "request": outcome.request,
            "base": outcome.base,
            "new": outcome.new if outcome.differences else "the same",
            "differences": outcome.differences,
        }
        for outcome in outcomes
    ]
    return {"summary": summary, "cases": cases}


def _latency(
    models: Sequence[Model],
    workers: dict[str, Worker],
    bundles: dict[str, dict[str, Path]],
    root: Path,
    arguments: argparse.Namespace,
) -> Json:
    """Print and return."""
    method = Method(
        arguments.rounds,
        arguments.min_rounds,
        arguments.seconds,
        arguments.threads,
        arguments.answer_tokens,
        arguments.transcribe_s,
    )
    rows = measure(models, workers, bundles, root, method, arguments.kind)
    print(tables.latency_table(rows))
    return {"method": asdict(method), "rows": rows}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", metavar="BASE", help="the commit to compare with: a hash, a branch, a tag")
    parser.add_argument("--tokens", action="store_true", help="compare answers (the default without --latency)")
    parser.add_argument("--latency", action="store_true", help="measure; the machine should have nothing else to do")
    parser.add_argument(
        "--only",
        type=_models,
        default=[*MODELS.values()],
        metavar="NAME,...",
        help="models whose answers are compared: demo, demo-fp32, golden, tiny, random or random-0 to random-19",
    )
    parser.add_argument(
        "--kind", type=_kinds, default=KINDS, metavar="KIND,...", help=f"ways to ask, of: {', '.join(KINDS)}"
    )
    parser.add_argument(
        "--shape",
        type=_shapes,
        default=[SHAPES["demo"]],
        metavar="NAME,...",
        help=f"models that are measured: {', '.join(SHAPES)}; 1b take minutes to export (default: demo)",
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--min-rounds", type=int, default=3, help="however long a case takes (default: 3)")
    parser.add_argument("--seconds", type=float, default=60.0, help="after which a case ends (default: 60)")
    parser.add_argument("--answer-tokens", type=int, default=32, help="of measured answers (default: 32)")
    parser.add_argument("--transcribe-s", type=float, default=120.0, help="of measured transcripts (default: 120)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of each engine (default: all cores)")
    parser.add_argument("--root", type=Path, default=HERE / "build" / "commits", help="default: build/commits")
    parser.add_argument(
        "--keep-bundles",
        action="store_true",
        help="of the files here, take the bundles that were exported last, though code has changed since",
    )
    parser.add_argument("--json", type=Path, help="default: ROOT/results.json")
    return parser


def _models(text: str) -> list[Model]:
    chosen = [model for model in MODELS.values() if {model.name, model.group} & set(text.split(","))]
    known = {name for model in MODELS.values() for name in (model.name, model.group)}
    if unknown := set(text.split(",")) - known:
        raise argparse.ArgumentTypeError(f"{sorted(unknown)}: expected some of {', '.join(MODELS)}, or random")
    return chosen


def _kinds(text: str) -> tuple[str, ...]:
    if unknown := set(text.split(",")) - set(KINDS):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)}: expected some of {', '.join(KINDS)}")
    return tuple(text.split(","))


def _shapes(text: str) -> list[Model]:
    if unknown := set(text.split(",")) - set(SHAPES):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)}: expected some of {', '.join(SHAPES)}")
    return [SHAPES[name] for name in text.split(",")]


if __name__ == "__main__":
    sys.exit(guarded(main))
