"""A server to measure: one of our own for a bundle, or one that runs already."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

END_S = 60


@contextmanager
def serving(bundle: Path, threads: int | None, *options: str, module: str = "salmonrun") -> Iterator[str]:
    """The address of a server, until the context ends."""
    with launched(bundle, threads, *options, module=module) as (url, _):
        yield url


@contextmanager
def launched(
    bundle: Path, threads: int | None, *options: str, module: str = "salmonrun"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`salmonrun serve`, or another module's, on any free port of loopback: its address and process."""
    own = [] if threads is None else ["--threads", str(threads)]
    command = [sys.executable, "-m", module, "serve", str(bundle), "--port", "0", *own, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout
        said = process.stdout.readline().strip()
        if not said:
            raise SystemExit(f"the server did not start: {' '.join(command)} says why")
        yield said.removeprefix("ready: ").removesuffix("/v1"), process
    finally:
        process.terminate()
        process.wait(END_S)
