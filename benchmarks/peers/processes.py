"""Worker processes: one engine each, in its environment, stopped by a signal while another is measured."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import HERE, REPOSITORY

Json = dict[str, Any]
# Every library's own way to be told, for what is not set through its options.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class WorkerError(Exception):
    """A worker could not do what it was asked; the message is the reason."""


class Worker:
    """A process that answers requests (see inside/protocol.py) and sleeps between them.

    It runs a script of inside/, or one by its own path, without .py; with `checkout` there, on that checkout's code.
    """

    def __init__(self, python: Path, script: str, threads: int, log: Path, checkout: Path | None = None) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        variables = os.environ | {name: str(threads) for name in THREAD_VARIABLES}
        variables |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        # Compiled code is kept: a later run of the same shapes need not compile them.
        variables["TORCHINDUCTOR_CACHE_DIR"] = str(log.parents[1] / "inductor")
        if checkout or script in ("salmonrun_worker", "limits_worker"):
            variables["PYTHONPATH"] = str(checkout or REPOSITORY)
        with log.open("w") as output:
            self.process = subprocess.Popen(
                (str(python), str(HERE / "inside" / f"{script}.py")),
                cwd=checkout or log.parent,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        self.stop()

    def request(self, **request: Any) -> Json:
        """Wake it, ask, wait for the reply, and stop it again: whatever its idle threads do, they do not do it now.

        Raises:
            WorkerError: it replied with an error, or died.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.send_signal(signal.SIGCONT)
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{_how_it_ended(self.process.wait())} ({self.log})")
        self.stop()
        reply: Json = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def stop(self) -> None:
        """No thread of it runs until the next request; returns when that is so, or it has died."""
        self.process.send_signal(signal.SIGSTOP)
        if self.process.returncode is None:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def _how_it_ended(code: int) -> str:
    return f"the worker was killed by signal {-code}" if code < 0 else f"the worker ended with exit code {code}"


@contextmanager
def closing_all(workers: dict[str, Worker]) -> Iterator[None]:
    """End all workers that are in the dict when the context ends."""
    try:
        yield
    finally:
        for worker in workers.values():
            worker.close()
