"""Commands around checkpoints: python -m training COMMAND."""

import sys

from salmonrun.stopping import leaving_at_once

with leaving_at_once():
    from salmonrun.runtime.commands.main import run_chosen
    from salmonrun.training.commands import TRAINING


def main(argv: list[str] | None = None) -> int:
    """The exit status of the command that the arguments name."""
    return run_chosen((TRAINING,), f"python -m {__package__}", "Make, train and measure checkpoints.", argv)


if __name__ == "__main__":
    sys.exit(main())
