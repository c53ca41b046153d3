"""Figures of a machine that does something else are no figures."""

import argparse

from salmonrun.runtime.cores import busy_note


def add_busy_option(parser: argparse.ArgumentParser) -> None:
    """For those who want to see them all the same."""
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine, too; the tables will say so")


def refuse_busy(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """Exits where others compute, unless that was asked for; what the tables are to say of it."""
    note = busy_note()
    if note and not arguments.busy:
        parser.error(f"{note}: stop what runs, or measure all the same with --busy")
    return note
