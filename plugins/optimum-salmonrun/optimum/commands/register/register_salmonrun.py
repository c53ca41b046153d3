"""`optimum-cli export salmonrun`: optimum imports the modules of this namespace package, which has no __init__.py."""

from salmonrun.export.commands.optimum_cli import REGISTER_COMMANDS

__all__ = ["REGISTER_COMMANDS"]
