"""`optimum-cli export salmonrun`: our command as one of optimum's. The distribution optimum-salmonrun registers it."""

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from salmonrun.export.commands import EXPORT
from salmonrun.export.commands.export import add_arguments
from salmonrun.runtime.commands.main import run_parsed


class SalmonrunExportCommand(BaseOptimumCLICommand):
    """The same options, errors and exit statuses."""

    COMMAND = CommandInfo(name="salmonrun", help="Export a SALMONN-style audio language model to a verified bundle.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Optimum has made the parser."""
        add_arguments(parser)

    def run(self) -> None:
        """Export, and end the process: optimum itself knows no exit status but 0."""
        sys.exit(run_parsed(EXPORT, self.parser, self.args))


REGISTER_COMMANDS = [(SalmonrunExportCommand, ExportCommand)]
