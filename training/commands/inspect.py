"""`python -m training inspect`: its options, and what it does with them."""

import argparse
import json
from dataclasses import asdict

from salmonrun.training.inspection.finding import format_finding
from salmonrun.training.inspection.inspect import inspect_path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    inspect = commands.add_parser(
        "inspect",
        help="what a file or folder is, and what to do with it",
        description="Say what a foreign file, a folder or a repository in the hub's cache is: a SALMONN .pth, a "
        "Whisper, a BEATs, an EAT, an LLM, a PEFT adapter, a tokenizer, a checkpoint or a bundle. No weights are read.",
        epilog="example: python -m training inspect salmonn_7b_v0.pth",
    )
    inspect.add_argument("path", metavar="FILE_OR_FOLDER_OR_ID")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    inspect.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> str:
    finding = inspect_path(arguments.path)
    if arguments.json:
        return json.dumps(asdict(finding) | {"usable": finding.usable}, indent=2, ensure_ascii=False)
    return format_finding(finding)
