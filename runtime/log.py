"""The log of the engine, `salmonrun`: what was loaded (INFO), and where the time of a request went (DEBUG).

It is silent until an app, or `-v` on the command line, says where it goes.
"""

import logging
import sys

LOGGER = logging.getLogger("salmonrun")
LOGGER.addHandler(logging.NullHandler())  # without it, logging would print warnings of a library by itself


def show_log(verbosity: int) -> None:
    """Print it to standard error: 1 for what is loaded, 2 for every request too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)


def stages_ms(stages: dict[str, float]) -> str:
    """Seconds of stages, for a line of the log."""
    return ", ".join(f"{stage} {1000 * seconds:.1f}" for stage, seconds in stages.items())
