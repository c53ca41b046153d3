"""salmonrun with one search in each round of decoding, to show what rounds of several are worth.

python -m benchmarks.serving.one_by_one serve BUNDLE
"""

import sys
from collections.abc import Sequence
from typing import TypeVar

from salmonrun.runtime import rounds, schedule
from salmonrun.runtime.__main__ import main
from salmonrun.runtime.running import Running

S = TypeVar("S")


def plan(searches: Sequence[Running[S]], number: int) -> list[Running[S]]:
    """The first of those that the scheduler would let in."""
    return schedule.plan(searches, number)[:1]


if __name__ == "__main__":
    rounds.plan = plan  # type: ignore[attr-defined]  # it has it from where it is made
    sys.exit(main())
