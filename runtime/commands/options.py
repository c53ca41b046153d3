"""Options that several commands have."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from salmonrun.runtime.cores import thread_count
from salmonrun.runtime.device import Device, check_device
from salmonrun.runtime.errors import DeviceError

if TYPE_CHECKING:
    from salmonrun.runtime import Engine, Limits


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """What to load, and where to run it: see `load_engine`."""
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        help="folder made by salmonrun export; or, where there is none, a repository of the Hugging Face Hub: "
        "org/name or org/name@revision",
    )
    add_device_argument(parser)
    parser.add_argument("--threads", type=int, help="at most, and by default, all usable cores")
    parser.add_argument(
        "--release-weights",
        action="store_true",
        help="give each part's memory back when a request has done with it: less at once, a little slower",
    )
    parser.add_argument(
        "--signed-by",
        metavar="KEY",
        help="refuse a bundle that this public key of minisign has not signed: RW..., or its file (extra: sign)",
    )
    parser.add_argument(
        "--copy",
        action="store_true",
        help="read all weights into memory of this process alone: what becomes of the files then does not matter",
    )
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="say what is loaded; -vv: and where each request's time goes"
    )


def add_device_argument(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """Where it shall run."""
    parser.add_argument(
        "--device",
        type=_device,
        default="auto",
        help="cpu, cuda, of several GPUs cuda:1; auto (the default): what a bundle was exported for, if it is there",
    )


def _device(text: str) -> Device:
    try:
        check_device(text)
    except DeviceError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def check_engine_arguments(arguments: argparse.Namespace) -> None:
    """What can be told without a bundle.

    Raises:
        ConfigError: so many threads there cannot be.
    """
    thread_count(arguments.threads)


def load_engine(arguments: argparse.Namespace) -> "Engine":
    """The engine asked for, for who sits in front of the command: `-v` shows the log, and a download is said."""
    from salmonrun.runtime.log import show_log

    if arguments.verbose:
        show_log(arguments.verbose)
    return open_engine(arguments, arguments.bundle, lambda line: print(line, file=sys.stderr, flush=True))


def open_engine(
    arguments: argparse.Namespace, bundle: str, told: Callable[[str], object], limits: "Limits | None" = None
) -> "Engine":
    """An engine of the options that all commands have.

    Args:
        arguments: of `add_engine_arguments`.
        bundle: which one: a command may have several.
        told: is given a line about a bundle that comes from the hub.
        limits: None: the engine's own.
    """
    from salmonrun.runtime.engine import Engine
    from salmonrun.runtime.hub import locate_bundle

    located = locate_bundle(bundle, signed=arguments.signed_by is not None)
    if located.hub:
        told(str(located))
    return Engine.load(
        located.folder,
        device=arguments.device,
        threads=arguments.threads,
        verify=True if arguments.signed_by is None else arguments.signed_by,
        limits=limits,
        release_weights=arguments.release_weights,
        copy=arguments.copy,
    )


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """What to ask."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--task", help="a task the bundle has a prompt for (default: asr)")
    what.add_argument("--prompt", help="an instruction in your own words, e.g. 'Describe the background.'")
    parser.add_argument("--question", help="fills the {} of the task's prompt, where it has one")
