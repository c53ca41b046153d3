"""`python -m salmonrun.kernels.gpu`: compile kernels for GPUs that need not be there; what does each take of one?"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import torch

from salmonrun.kernels.gpu.compilation import CAPABILITIES, LLMS, SHARED, compiled, launches_of, window_launch
from salmonrun.kernels.gpu.launch import Launch
from salmonrun.kernels.gpu.matrix import Kind

KINDS: tuple[Kind, ...] = ("nf4", "int4", "int8", "float")
ROWS = (1, 32)
QUICK = ("attention", "down")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each kernel; 1 where one takes more shared memory than a program may have."""
    parser = argparse.ArgumentParser(prog="python -m salmonrun.kernels.gpu", description=__doc__)
    parser.add_argument(
        "--capability", type=int, nargs="+", choices=CAPABILITIES, default=CAPABILITIES, help="default: 80 90"
    )
    parser.add_argument("--quick", action="store_true", help="two kernels, in seconds")
    args = parser.parse_args(argv)
    runs = True
    print(f"{'kernel':60} {'sm':>3} {'registers':>9} {'spilled':>7} {'shared':>7} {'cubin':>7}")
    for name, launch in quick_cases() if args.quick else cases():
        for capability in args.capability:
            made = compiled(launch, capability)
            runs &= made.shared <= SHARED[capability]
            print(
                f"{name:60} {capability:3} {made.registers:9} {made.spilled:7} {made.shared:7} {made.size:7}",
                flush=True,
            )
    return 0 if runs else 1


def cases() -> Iterator[tuple[str, Launch]]:
    """The launches of steps of LLMs, and of the Q-Former: nf4 of every shape, the other kinds of the first."""
    for llm in LLMS:
        for kind in KINDS if llm is LLMS[0] else KINDS[:1]:
            for rows in ROWS if kind == KINDS[0] else ROWS[:1]:
                for name, launch in launches_of(llm, kind, torch.bfloat16, rows):
                    yield f"{llm.name} {kind} x{rows}: {name}", launch
    yield "Q-Former: windows", window_launch(torch.float16)


def quick_cases() -> Iterator[tuple[str, Launch]]:
    """Two of the first step."""
    for name, launch in launches_of(LLMS[0], KINDS[0], torch.bfloat16, ROWS[0]):
        if name in QUICK:
            yield name, launch


if __name__ == "__main__":
    sys.exit(main())
