"""Commands of the engine: python -m runtime {transcribe,stream,latency,check}."""

import argparse
import io
import os
import sys

from salmonrun.runtime import SalmonrunError
from salmonrun.runtime.commands import check, latency, stream, transcribe


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments and run a command; 1 on an error the user can mend, 2 on wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m runtime", description="Run an exported audio language model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (transcribe, stream, latency, check):
        command.add(commands)
    arguments = parser.parse_args(argv)
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")  # file names need not be valid text
    try:
        return int(arguments.run(arguments))
    except SalmonrunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
