"""A plan for a machine with a GPU, that runs itself and goes on where it was: python -m benchmarks.gpu {test,bench}

Each step takes at most 8 minutes in a process of its own, and leaves a file of JSON in build/gpu/DEVICE: remove it to
do the step again. No network is needed. With --device cpu all of it runs where there is no GPU, so that it is tried.
The tables are made of these files, and printed; `tables` does nothing else.
"""

import argparse
import sys

from benchmarks.gpu.page import tables
from benchmarks.gpu.plan import run
from benchmarks.gpu.step import BENCH, TEST, add_plan_arguments, plan_of
from salmonrun.runtime.commands.main import guarded

PLANS = {"test": tuple(TEST), "bench": tuple(BENCH), "tables": ()}


def main(argv: list[str] | None = None) -> int:
    """Run a plan, and print its tables: 1 if a step failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", choices=PLANS)
    add_plan_arguments(parser)
    parser.add_argument("--only", nargs="+", metavar="STEP", help="of the plan's (default: all)")
    arguments = parser.parse_args(argv)
    plan, steps = plan_of(arguments), PLANS[arguments.plan]
    if unknown := sorted(set(arguments.only or ()) - set(steps)):
        parser.error(f"no step {unknown[0]!r} in {arguments.plan}; there are {', '.join(steps)}")
    outcomes = run(plan, [step for step in steps if not arguments.only or step in arguments.only])
    text = tables(plan)
    print(f"\n{text}", end="")
    file = plan.file("tables").with_suffix(".md")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return 0 if all(outcome["ok"] for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(guarded(main))
