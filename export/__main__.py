"""The exporter: python -m export CHECKPOINT BUNDLE."""

import sys

from salmonrun.stopping import leaving_at_once

with leaving_at_once():
    from salmonrun.export.commands import EXPORT
    from salmonrun.runtime.commands.main import run_command


def main(argv: list[str] | None = None) -> int:
    """The exit status of the export that the arguments describe."""
    return run_command(EXPORT, f"python -m {__package__}", argv)


if __name__ == "__main__":
    sys.exit(main())
