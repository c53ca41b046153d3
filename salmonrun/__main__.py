"""Every command, by one name: salmonrun COMMAND, or python -m salmonrun COMMAND."""

import sys

from salmonrun.stopping import leaving_at_once

with leaving_at_once():
    from salmonrun.export.commands import EXPORTING
    from salmonrun.runtime.commands import RUNNING
    from salmonrun.runtime.commands.main import run_chosen
    from salmonrun.training.commands import TRAINING

DESCRIPTION = "Train SALMONN-style audio language models, export them to verified bundles, and run those."


def main(argv: list[str] | None = None, prog: str = "salmonrun") -> int:
    """The exit status of the command that the arguments name."""
    return run_chosen((TRAINING, EXPORTING, RUNNING), prog, DESCRIPTION, argv)


if __name__ == "__main__":
    sys.exit(main(prog="python -m salmonrun"))
