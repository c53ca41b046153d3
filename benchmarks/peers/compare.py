"""Time salmonrun beside its peers: the same weights, the same work, the same threads, in turn, in one run.

    python -m benchmarks.peers.compare [--root build/peers] [--shape full] [--only salmonrun,pytorch] [--docs docs]

Environments and models are made when they are not there, which takes long the first time. An engine that cannot be made
or run has a row that says why. Tables go to stdout, and to DOCS/performance.md with --docs; the last line is JSON.
"""

import argparse
import datetime
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.peers import environments, page
from benchmarks.peers.engines import ENGINES, ConversionError, engines_for, prepare_model
from benchmarks.peers.machine import machine
from benchmarks.peers.measure import Method, Ready, Row, crash, measure
from benchmarks.peers.shapes import GROUPS, SHAPES
from benchmarks.peers.summary import summarize
from benchmarks.quiet import add_busy_option, refuse_busy
from salmonrun.runtime.commands.main import guarded
from salmonrun.runtime.cores import usable_cores

PEERS = tuple(dict.fromkeys(engine.peer for engine in ENGINES))


def main() -> None:
    """Prepare, measure, write."""
    parser = _parser()
    arguments = parser.parse_args()
    root = arguments.root.absolute()
    shapes = [SHAPES[name] for name in GROUPS.get(arguments.shape, (arguments.shape,))]
    rows = {
        shape.name: {engine.name: Row(shape.name, engine) for engine in engines_for(shape, arguments.only)}
        for shape in shapes
    }
    ready = prepare(root, rows, dict(arguments.python), dict(arguments.checkout))
    method = Method(arguments.rounds, arguments.min_rounds, arguments.seconds, arguments.threads, arguments.seed)
    if arguments.prepare_only:
        for row in (row for own in rows.values() for row in own.values() if row.failure):
            print(f"{row.shape}, {row.engine.name}: {row.failure}")
        return
    busy = refuse_busy(parser, arguments)
    limits: list[dict[str, float]] = []
    for shape in shapes:
        measure(shape, ready[shape.name], rows[shape.name], limits, method, root)
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "busy": busy,
        "method": vars(method),
        **summarize([row for own in rows.values() for row in own.values()], limits),
    }
    for table in page.tables(results).values():
        print(table, end="\n\n")
    (root / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    if arguments.docs:
        page.write(results, arguments.docs)
    print(json.dumps(results))


def prepare(
    root: Path, rows: dict[str, dict[str, Row]], given: dict[str, Path], checkouts: dict[str, Path]
) -> dict[str, list[Ready]]:
    """Environments, then models; shape -> engines that can be measured. The rows of the others say why not."""
    pythons: dict[str, Path | str] = {}
    ready: dict[str, list[Ready]] = {shape: [] for shape in rows}
    bar = tqdm([row for own in rows.values() for row in own.values()], desc="preparing", unit="model")

    def made(row: Row) -> Ready:
        environment = row.engine.environment
        if environment not in pythons:
            pythons[environment] = given.get(environment) or _make(root, environment, checkouts)
        python = pythons[environment]
        if isinstance(python, str):
            raise environments.InstallationError(python)
        return Ready(row.engine, python, prepare_model(root, SHAPES[row.shape], row.engine, python))

    for row in bar:
        bar.set_postfix_str(f"{row.shape}, {row.engine.name}")
        try:
            one = made(row)
            if row.engine.fallback and (reason := crash(one, root)):
                note = f"{row.engine.fallback_note}: as built for this machine, {reason}"
                row.engine = replace(row.engine, environment=row.engine.fallback, note=note)
                one = made(row)
            ready[row.shape].append(one)
        except environments.InstallationError as error:
            row.failure = f"cannot be installed: {error}"
        except (OSError, ConversionError) as error:
            row.failure = f"cannot be made: {error}"
    return ready


def _make(root: Path, environment: str, checkouts: dict[str, Path]) -> Path | str:
    """Its Python, or why there is none."""
    try:
        return environments.make(root, environment, checkouts)
    except environments.InstallationError as error:
        return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("build/peers"), help="environments, models and logs")
    parser.add_argument("--shape", choices=(*GROUPS, *SHAPES), default="full", help="one, or a group of them")
    parser.add_argument("--only", type=_peers, default=(), metavar="PEER,...", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--min-rounds", type=int, default=2, help="that every engine takes part in, however slow")
    parser.add_argument("--seconds", type=float, default=12.0, help="after which an engine leaves a task (default: 12)")
    parser.add_argument(
        "--threads", type=int, default=usable_cores(), help="of each engine (default: all usable cores)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order in a round")
    parser.add_argument(
        "--python", type=_python, action="append", default=[], metavar="ENVIRONMENT=PYTHON", help="use this one"
    )
    environments.add_checkout_option(parser)
    add_busy_option(parser)
    parser.add_argument("--docs", type=Path, help="folder of performance.md, whose tables and plots are replaced")
    parser.add_argument("--prepare-only", action="store_true", help="make environments and models, measure nothing")
    return parser


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(PEERS):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)}: expected some of {', '.join(PEERS)}")
    if "salmonrun" not in names:
        raise argparse.ArgumentTypeError("salmonrun must be one of them: the others are compared with it")
    return names


def _python(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if name not in environments.ENVIRONMENTS or not path:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected ENVIRONMENT=PYTHON, of {', '.join(environments.ENVIRONMENTS)}"
        )
    return name, Path(path).absolute()


if __name__ == "__main__":
    sys.exit(guarded(main))
