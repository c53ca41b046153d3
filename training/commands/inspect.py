"""`salmonrun inspect`: its options, and what it does with them."""

import argparse
import json
from dataclasses import asdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Say what a foreign file, a folder or a repository in the hub's cache is: a SALMONN .pth, a Whisper, a BEATs, "
        "an EAT, an LLM, a PEFT adapter, a tokenizer, a checkpoint or a bundle. No weights are read."
    )
    parser.epilog = "example: %(prog)s salmonn_7b_v0.pth"
    parser.add_argument("path", metavar="FILE_OR_FOLDER_OR_ID")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from salmonrun.training.inspection.finding import format_finding
    from salmonrun.training.inspection.inspect import inspect_path

    finding = inspect_path(arguments.path)
    if arguments.json:
        print(json.dumps(asdict(finding) | {"usable": finding.usable}, indent=2, ensure_ascii=False))
    else:
        print(format_finding(finding))
    return 0
