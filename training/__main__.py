"""Commands around checkpoints: python -m training {init,convert,inspect,synthesize,data,finetune,evaluate,baseline}."""

import argparse
import sys

import transformers

from salmonrun.runtime.errors import SalmonrunError
from salmonrun.training.commands import baseline, convert, data, evaluate, finetune, init, inspect, synthesize


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments and run a command; 1 on an error the user can mend, 2 on wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m training", description="Make, train and measure checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (init, convert, inspect, synthesize, data, finetune, evaluate, baseline):
        command.add(commands)
    arguments = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    try:
        print(arguments.run(arguments))
    except (SalmonrunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
