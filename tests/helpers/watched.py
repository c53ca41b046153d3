"""Scripts of which one sees what runs and how long it takes, and that end if a command of theirs does not."""

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

MARK = "+ "  # bash's own, in front of a command that it begins


def run_watched(
    start: Sequence[str],
    script: str,
    folder: Path,
    env: Mapping[str, str],
    limit_s: float,
    show: Callable[[str], object],
) -> "subprocess.CompletedProcess[str]":
    """Run a script in a folder.

    Args:
        start: the program and its options, up to the one that takes the script.
        script: for bash; to others it is one command.
        folder: where.
        env: its variables.
        limit_s: seconds that a command of it may take.
        show: gets each command as it begins, and its seconds as the next one does: those of a pipeline are its last's.

    Raises:
        TimeoutError: names the command that took longer; all that the script has started is ended.
    """
    reading, writing = os.pipe()
    traced = f"BASH_XTRACEFD={writing}; PS4={MARK!r}; set -x\n{script}" if start[0] == "bash" else script
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, os.fdopen(reading, "rb") as trace:
        process = subprocess.Popen(
            [*start, traced],
            cwd=folder,
            env=env,
            stdout=out,
            stderr=err,
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(writing)
        try:
            _watch(process, trace.fileno(), Path(start[0]).name, limit_s, show)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(start, process.returncode, out.read(), err.read())


def _watch(
    process: "subprocess.Popen[bytes]", trace: int, command: str, limit_s: float, show: Callable[[str], object]
) -> None:
    """Until the process has ended."""
    began, shown = time.monotonic(), False
    open_ends = [trace]
    while True:
        ended = process.poll() is not None
        ready, _, _ = select.select(open_ends, [], [], 0 if ended else 0.1)
        if ended and not ready:
            break
        lines = os.read(trace, 2**16).decode(errors="replace").splitlines() if ready else None
        if lines == []:  # closed; a process may live on behind it
            open_ends = []
        for line in lines or []:
            if line.startswith(MARK):
                show(f"  {time.monotonic() - began:.1f} s\n" if shown else "")
                command, began, shown = line.removeprefix(MARK), time.monotonic(), True
                show(command)
        if time.monotonic() - began > limit_s:
            raise TimeoutError(f"{command} took more than {limit_s:g} s")
    show(f"{'' if shown else command}  {time.monotonic() - began:.1f} s\n")
