"""`python -m tests.fuzz`: mutants by the hundred thousand, in processes of their own, which a crash or hang may end."""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from salmonrun.kernels.cpu import load_native
from tests.fuzz.worker import NONE, Progress
from tests.helpers.native_build import file_of

PATIENCE = 300.0  # seconds that one case may take, on a machine that does much else
ENOUGH = 20  # findings: then it ends


class Worker:
    """Every n-th case, in a process that is started again behind a case that has ended it."""

    def __init__(self, arguments: argparse.Namespace, number: int, folder: Path) -> None:
        self._arguments = arguments
        self._folder = folder / str(number)
        self._folder.mkdir()
        self._changed = time.monotonic()
        self._seen = NONE
        self.progress = Progress(self._folder / "progress")
        self.done = False
        self._start(arguments.first + number)

    def _start(self, first: int) -> None:
        given = self._arguments
        last = given.first + given.count
        command = [sys.executable, "-m", "tests.fuzz.worker", given.extension, given.seed, first, last, given.workers]
        self._process = subprocess.Popen([*map(str, command), self._folder], stderr=subprocess.PIPE, text=True)

    def look(self) -> str | None:
        """Note whether it goes on, has ended, or hangs: what is wrong with the case it is at, if anything."""
        case = self.progress.case
        if case != self._seen:
            self._seen, self._changed = case, time.monotonic()
        code = self._process.poll()
        hangs = code is None and time.monotonic() - self._changed > PATIENCE
        if hangs:
            self._process.kill()
        elif code is None:
            return None
        _, errors = self._process.communicate()
        self.done = code == 0
        if self.done:
            return None
        case = self.progress.case
        self._changed = time.monotonic()
        self._start(case + self._arguments.workers)
        return f"case {case} {'hangs' if hangs else f'ends with {code}'}\n{errors}"

    def end(self) -> None:
        """Whatever it does."""
        self._process.kill()
        self._process.wait()


def main() -> int:
    """Run all cases; 1 where something was found."""
    arguments = parse()
    print(f"seed {arguments.seed}, {arguments.count} mutants, {arguments.workers} processes, {arguments.extension}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        workers = [Worker(arguments, number, Path(folder)) for number in range(arguments.workers)]
        try:
            findings = watch(workers, arguments.interval)
        finally:
            for worker in workers:
                worker.end()
    print(f"{findings} findings")
    return int(findings > 0)


def watch(workers: list[Worker], interval: float) -> int:
    """Until all are done, or enough is found: how much."""
    begin, shown, findings = time.monotonic(), 0.0, 0
    while findings < ENOUGH and not all(worker.done for worker in workers):
        time.sleep(0.1)
        for worker in workers:
            if finding := None if worker.done else worker.look():
                findings += 1
                print(finding, flush=True)
        if time.monotonic() - shown > interval:
            shown = time.monotonic()
            print(state(workers, begin), flush=True)
    print(state(workers, begin))
    return findings


def state(workers: list[Worker], begin: float) -> str:
    """How far all are."""
    refused, ran = (sum(getattr(worker.progress, name) for worker in workers) for name in ("refused", "ran"))
    return f"{refused + ran} mutants in {time.monotonic() - begin:.0f} s: {refused} refused, {ran} ran"


def parse() -> argparse.Namespace:
    """The command line. A case is told by the seed and its number: `--seed S --first N --count 1` runs it again."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="mutants (default: 100000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, help="of all of them (default: a new one, which is printed)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--native-build", type=Path, help="folder of another build of the extension")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between two lines about progress")
    parser.add_argument("--folder", type=Path, help="where mutants are written (default: the system's)")
    arguments = parser.parse_args()
    arguments.seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    build = arguments.native_build
    arguments.extension = file_of(build) if build else load_native().__file__
    return arguments


if __name__ == "__main__":
    sys.exit(main())
