"""What every command line shares: a table of commands, the one that is chosen, errors, exit statuses.

A command's module is imported when the command is chosen. It defines arguments with nothing but light modules; what
its work needs (ONNX Runtime, PyTorch) is imported by the function that does the work. So help and mistakes take no
time, and need no extra.
"""

import argparse
import importlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from salmonrun.runtime.errors import ConfigError, MissingExtraError, SalmonrunError
from salmonrun.stopping import Terminated, stoppable
from salmonrun.version import __version__

TITLES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}
ENGINE_EXTRA = "cpu"  # what a command needs that names no other


@dataclass(frozen=True)
class Command:
    """A row of a table."""

    name: str
    # Has add_arguments(parser), which sets `run` to a function from arguments to an exit status. It may set `settings`,
    # a light function from arguments to what `run` takes as a second argument: a ConfigError of it is a wrong argument.
    module: str
    summary: str  # on one line
    extra: str | None = None  # to be installed for it


@dataclass(frozen=True)
class Group:
    """Commands that belong together."""

    title: str
    commands: tuple[Command, ...]


def run_chosen(groups: Sequence[Group], prog: str, description: str, argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names: its exit status.

    0: done; 1: an error the user can mend, or a check that failed; 130: interrupted; 143: terminated. Wrong arguments
    raise SystemExit(2), before any work.
    """
    commands = {command.name: command for group in groups for command in group.commands}

    def work() -> int:
        given = sys.argv[1:] if argv is None else list(argv)
        name = _front_parser(groups, prog, description).parse_args(given[:1]).command
        return _run(commands[name], f"{prog} {name}", given[1:])

    return guarded(work)


def run_command(command: Command, prog: str, argv: Sequence[str] | None = None) -> int:
    """Run a command that has a command line of its own: its exit status, as of `run_chosen`."""
    return guarded(lambda: _run(command, prog, sys.argv[1:] if argv is None else argv))


def run_parsed(command: Command, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Run a command whose arguments another program's command line has parsed: its exit status, as of `run_chosen`."""
    return guarded(lambda: _run_parsed(command, parser, lambda: arguments))


def guarded(work: Callable[[], int | None]) -> int:
    """Do it; what a user can mend, or wanted, becomes a line and an exit status. None: it went well."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")  # file names need not be valid text
    if logging.lastResort:  # warnings, in a line each, also where the logger of the engine has no handler that prints
        logging.getLogger("salmonrun").addHandler(logging.lastResort)
    try:
        try:
            with stoppable():
                return work() or 0
        finally:
            sys.stdout.flush()  # here, and not when the interpreter ends, a reader that is gone can be told apart
    except BrokenPipeError:  # the reader, such as head, has enough
        _drop_output()
        return 0
    except (SalmonrunError, OSError) as error:
        print(f"error: {_unwritable() or error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        from salmonrun.runtime.exhausted import exhausted  # here alone: --help imports little

        if not (lacking := exhausted(error)):
            raise
        print(
            f"error: this machine, or a limit of this process (ulimit -a), has no more left: {lacking}", file=sys.stderr
        )
        return 1
    except Terminated:
        print("terminated", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _front_parser(groups: Sequence[Group], prog: str, description: str) -> argparse.ArgumentParser:
    """For what stands before the command's own arguments."""
    names = [command.name for group in groups for command in group.commands]
    width = max(map(len, names))
    lines = [description]
    for group in groups:
        lines += ["", f"{group.title}:"]
        lines += [f"  {command.name:{width}}  {command.summary}" for command in group.commands]
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description="\n".join(lines),
        epilog="%(prog)s COMMAND --help says what a command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"salmonrun {__version__}")
    parser.add_argument("command", choices=names, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def _run(command: Command, prog: str, argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=prog)
    importlib.import_module(command.module).add_arguments(parser)
    return _run_parsed(command, parser, lambda: parser.parse_args(argv))


def _run_parsed(command: Command, parser: argparse.ArgumentParser, parse: Callable[[], argparse.Namespace]) -> int:
    try:
        arguments = parse()
        if "settings" not in arguments:
            return int(arguments.run(arguments))
        try:
            settings = arguments.settings(arguments)
        except ConfigError as error:
            parser.error(_in_options(str(error), parser))
        return int(arguments.run(arguments, settings))
    except SalmonrunError as error:
        print(f"error: {_in_options(str(error), parser)}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "salmonrun"):
            raise
        raise MissingExtraError(
            f"{parser.prog} needs {TITLES.get(missing, missing)}, which is not installed: "
            f"pip install 'salmonrun[{command.extra or ENGINE_EXTRA}]'"
        ) from error


def _in_options(message: str, parser: argparse.ArgumentParser) -> str:
    """A message of the library, which names fields and arguments, in the words of the command line."""
    for option in sorted(set(re.findall(r"--([a-z][a-z-]*)", parser.format_usage())), key=len, reverse=True):
        name = option.replace("-", "_")
        if "_" in name:  # nothing else looks like it
            message = re.sub(rf"(?<![\w.-]){name}\b", f"--{option}", message)
        # What may be a word of the sentence, too; a field may have its unit behind its name.
        message = re.sub(rf"^{name}(_s|s)?(?= (is|has)\b)", f"--{option}", message)
        message = re.sub(rf"(?<![\w.-]){name}=(?=['\"\d])", f"--{option} ", message)
        message = re.sub(rf"(?<![\w.-]){name}=(?!\w)", f"--{option}", message)
    return message


def _unwritable() -> str:
    """Why standard output takes nothing, if that is so: a full disk. The interpreter's end must not try again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _drop_output()
        return f"standard output cannot be written: {error.strerror}"
    return ""


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
