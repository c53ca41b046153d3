"""Commands of the engine: python -m runtime COMMAND."""

import sys

from salmonrun.stopping import leaving_at_once

with leaving_at_once():
    from salmonrun.runtime.commands import RUNNING
    from salmonrun.runtime.commands.main import run_chosen


def main(argv: list[str] | None = None) -> int:
    """The exit status of the command that the arguments name."""
    return run_chosen((RUNNING,), f"python -m {__package__}", "Run an exported audio language model.", argv)


if __name__ == "__main__":
    sys.exit(main())
