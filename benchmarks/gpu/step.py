"""One step of a plan: python -m benchmarks.gpu.step NAME. Its outcome is a file of JSON."""

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import half, latency, models, proving, steps, streams, vllm
from benchmarks.gpu.plan import Plan, keep
from salmonrun import __version__
from salmonrun.runtime import SalmonrunError
from salmonrun.runtime.commands.main import guarded
from salmonrun.training.starting.presets import PRESETS

Step = Callable[[Plan], dict[str, Any]]


def _each(name: str, kind: models.Kind, function: Callable[..., dict[str, Any]]) -> dict[str, Step]:
    """A step for every precision of a kind of checkpoint: no process does more than it has time for."""
    return {
        f"{name}-{precision}": partial(function, bundle=models.name(kind, precision)) for precision in models.PRECISIONS
    }


# In the order they are done in: does a GPU compute what the CPU does; how long does it take.
TEST: dict[str, Step] = {
    "machine": proving.machine,
    **_each("export-demo", "demo", models.make),
    "half": half.safety,
    **_each("stages", "demo", proving.stages),
    **_each("tokens", "demo", proving.tokens),
    **_each("rounds", "demo", proving.rounds),
}
BENCH: dict[str, Step] = {
    "machine": proving.machine,
    "checkpoint": models.make_checkpoint,
    **_each("export-sized", "sized", models.make),
    **_each("steps", "sized", steps.decoder_steps),
    "steps-vllm": vllm.steps,
    **_each("memory", "sized", steps.memory),
    **_each("latency", "sized", latency.beside_pytorch),
    "load": latency.load,
    "export-demo-nf4": partial(models.make, bundle=models.name("demo", "nf4")),
    "streams": streams.served,
}
STEPS = TEST | BENCH


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a plan runs and what with."""
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try it all (default: cuda)")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="(default: build/gpu)")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="of the checkpoint of random weights that is measured (default: v3-turbo-llama-1b; tiny on a CPU)",
    )
    parser.add_argument(
        "--seconds", type=float, help="that a figure may be measured for (default: 20; 1 on a CPU, where none counts)"
    )


def plan_of(arguments: argparse.Namespace) -> Plan:
    """What the arguments say."""
    preset, seconds = ("tiny", 1.0) if arguments.device == "cpu" else ("v3-turbo-llama-1b", 20.0)
    return Plan(
        arguments.device,
        arguments.out,
        arguments.preset or preset,
        seconds if arguments.seconds is None else arguments.seconds,
    )


def main(argv: list[str] | None = None) -> None:
    """Do it, and keep what it found or why it failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    add_plan_arguments(parser)
    arguments = parser.parse_args(argv)
    plan, started = plan_of(arguments), time.perf_counter()
    outcome: dict[str, Any]
    try:
        outcome = {"ok": True, "found": STEPS[arguments.step](plan)}
    except (SalmonrunError, AssertionError) as error:  # others end the process: the plan says so
        outcome = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    keep(plan, arguments.step, {**outcome, "seconds": time.perf_counter() - started, "at": when, "with": __version__})


if __name__ == "__main__":
    sys.exit(guarded(main))
