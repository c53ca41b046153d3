"""Ctrl-C and SIGTERM on a command line: a line and an exit status, whenever they come, and no traceback."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Terminated(KeyboardInterrupt):
    """SIGTERM: what is half-made is removed, as after Ctrl-C."""


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """For the imports of a command line, before it can have made anything."""
    with _handling(_leave):
        yield


@contextmanager
def stoppable() -> Iterator[None]:
    """For a command: both signals unwind the stack, as `KeyboardInterrupt` and `Terminated`.

    While the command imports what it needs, they end the process on the spot. An exception would come out of somebody
    else's import, and there it may be swallowed, wrapped, or reported by C code that expects none.
    """
    with _handling(_stop):
        yield


@contextmanager
def _handling(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone may say what signals do
        yield
        return
    # A shell that starts a command with & has it ignore Ctrl-C.
    taken = [number for number in SAID if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    if _is_command_line(_importer(frame)):
        _leave(number, frame)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _leave(number: int, _frame: FrameType | None) -> None:
    """End the process; what has been printed is handed on, where nobody is just printing."""
    with suppress(OSError, RuntimeError):  # its reader is gone, or the signal came in the middle of a flush
        sys.stdout.flush()
    os.write(2, f"{SAID[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)


def _importer(frame: FrameType | None) -> str:
    """The module that asked for the outermost import that this happens in; empty if it happens in none."""
    found, inside = "", False
    while frame:
        name = str(frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] in ("importlib", "_frozen_importlib", "_frozen_importlib_external"):
            inside = True
        elif inside:
            found, inside = name, False
        frame = frame.f_back
    return found


def _is_command_line(module: str) -> bool:
    """A module of a command, which imports what it needs before it makes anything."""
    return module.startswith("salmonrun.") and ".commands." in module
