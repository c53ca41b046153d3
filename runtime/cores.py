"""How many cores there are to use."""

import os

from salmonrun.runtime.checks import checked
from salmonrun.runtime.errors import ConfigError


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
