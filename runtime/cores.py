"""How many cores there are to use, and whether others use them."""

import os
from pathlib import Path

from salmonrun.runtime.checks import checked
from salmonrun.runtime.errors import ConfigError

PRESSURE = Path("/proc/pressure/cpu")  # Linux's pressure stall information
BUSY = 0.1  # share of the time


def waiting_share() -> float | None:
    """Share of the last 10 s in which somebody waited for a core; None where the system does not say."""
    try:
        first = PRESSURE.read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    fields = dict(field.split("=") for field in first.split()[1:])
    return float(fields["avg10"]) / 100


def busy_note() -> str:
    """What is to be said of figures that are taken now; empty on a machine that does nothing else."""
    share = waiting_share()
    if share is None or share < BUSY:
        return ""
    return f"the machine is busy: in {share:.0%} of the last 10 s somebody waited for a core ({PRESSURE})"


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@checked()
def thread_count(threads: int | None) -> int:
    """The threads asked for; None: one for each core.

    Raises:
        ConfigError: none, or more than there are cores: each session has so many, and they would wait for each other.
    """
    cores = usable_cores()
    if threads is None:
        return cores
    if threads < 1:
        raise ConfigError(f"threads is {threads}; it must be at least 1, or left out for all cores")
    if threads > cores:
        raise ConfigError(f"threads is {threads}; this process may use {cores} core{'s' * (cores > 1)}, and no more")
    return int(threads)
