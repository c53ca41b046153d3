"""Options that several commands have."""

import argparse

from salmonrun.runtime import Engine, GenerationConfig


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """What to load, and where to run it: see `load_engine`."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder made by python -m export")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--threads", type=int, default=None, help="default: all usable cores")


def load_engine(arguments: argparse.Namespace) -> Engine:
    """The engine asked for."""
    return Engine.load(arguments.bundle, device=arguments.device, threads=arguments.threads)


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """What to ask, and how long the answer may be."""
    longest = GenerationConfig().max_new_tokens
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--task", help="a task the bundle has a prompt for (default: asr)")
    what.add_argument("--prompt", help="an instruction in your own words, e.g. 'Describe the background.'")
    parser.add_argument("--question", help="fills the {} of the task's prompt, where it has one")
    parser.add_argument(
        "--max-new-tokens", type=int, default=longest, help=f"longest answer, in tokens (default: {longest})"
    )
