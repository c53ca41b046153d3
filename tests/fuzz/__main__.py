"""`python -m tests.fuzz`: mutants of a target by the thousand, in processes of their own, which a crash may end."""

import argparse
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.targets import TARGETS, target
from tests.fuzz.worker import BUILT_IN, FOREIGN, MATERIAL, NONE, Progress
from tests.helpers.native_build import file_of

PATIENCE = 300.0  # seconds that one case may take, on a machine that does much else


class Worker:
    """Every n-th case, in a process that is started again behind a case that has ended it."""

    def __init__(self, arguments: argparse.Namespace, number: int, folder: Path) -> None:
        self._arguments = arguments
        self._folder = folder / str(number)
        self._folder.mkdir()
        self._changed = time.monotonic()
        self._seen = NONE
        self._reported = 0  # characters of what it has written of foreign errors
        self.progress = Progress(self._folder / "progress")
        self.done = False
        self._start(arguments.first + number)

    def _start(self, first: int) -> None:
        given = self._arguments
        last = given.first + given.count
        command = [sys.executable, "-m", "tests.fuzz.worker", given.extension, given.target, given.seed]
        command += [first, last, given.workers]
        self._process = subprocess.Popen([*map(str, command), self._folder], stderr=subprocess.PIPE, text=True)

    def look(self) -> str | None:
        """Note whether it goes on, has ended, or hangs: what is wrong with the case it is at, if anything."""
        if found := self._foreign():
            return found
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

    def _foreign(self) -> str:
        """Errors that are none of ours, since the last look."""
        path = self._folder / FOREIGN
        new = path.read_text()[self._reported :] if path.exists() else ""
        self._reported += len(new)
        return new

    def end(self) -> None:
        """Whatever it does."""
        self._process.kill()
        self._process.wait()


def main() -> int:
    """Run all cases of a target, or of all of them in turn; 1 where something was found."""
    arguments = parse()
    chosen = sorted(TARGETS) if arguments.target == "all" else [arguments.target]
    findings = 0
    for name in chosen:
        found = fuzz(argparse.Namespace(**vars(arguments) | {"target": name}), arguments.minutes / len(chosen))
        print(f"{found} findings")
        findings += found
    return int(findings > 0)


def fuzz(arguments: argparse.Namespace, minutes: float) -> int:
    """Run the cases of one target: how many findings."""
    print(f"{arguments.target}: seed {arguments.seed}, {arguments.count} mutants, {arguments.workers} processes")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        (Path(folder) / MATERIAL).mkdir()
        target(arguments.target).prepare(Path(folder) / MATERIAL)
        workers = [Worker(arguments, number, Path(folder)) for number in range(arguments.workers)]
        try:
            return watch(workers, arguments, minutes)
        finally:
            for worker in workers:
                worker.end()


def watch(workers: list[Worker], arguments: argparse.Namespace, minutes: float) -> int:
    """Until all are done, the time is over, or enough is found: how much."""
    begin, shown, ended = time.monotonic(), 0.0, 0
    end = begin + 60 * minutes
    while time.monotonic() < end and not all(worker.done for worker in workers):
        time.sleep(0.1)
        for worker in workers:
            if finding := None if worker.done else worker.look():
                ended += "ends with" in finding or "hangs" in finding
                print(finding, flush=True)
        if ended + sum(worker.progress.foreign for worker in workers) >= arguments.enough:
            break
        if time.monotonic() - shown > arguments.interval:
            shown = time.monotonic()
            print(state(workers, begin), flush=True)
    print(state(workers, begin))
    return ended + sum(worker.progress.foreign for worker in workers)


def state(workers: list[Worker], begin: float) -> str:
    """How far all are."""
    names = ("refused", "late", "ran", "foreign")
    refused, late, ran, foreign = (sum(getattr(worker.progress, name) for worker in workers) for name in names)
    counts = f"{refused} refused, {late} refused late, {ran} ran, {foreign} foreign"
    return f"{refused + late + ran + foreign} mutants in {time.monotonic() - begin:.0f} s: {counts}"


def parse() -> argparse.Namespace:
    """The command line. A case is told by the seed and its number: `--seed S --first N --count 1` runs it again."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--target", choices=["all", *sorted(TARGETS)], default="all", help="what is changed (default: all)"
    )
    parser.add_argument("--count", type=int, default=100_000, help="mutants of each (default: 100000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, help="of all of them (default: a new one, which is printed)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="at most, shared by all (default: any)")
    parser.add_argument("--enough", type=int, default=20, help="findings: then it ends (default: 20)")
    parser.add_argument("--native-build", type=Path, help="folder of another build of the extension")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between two lines about progress")
    parser.add_argument("--folder", type=Path, help="where mutants are written (default: the system's)")
    arguments = parser.parse_args()
    arguments.seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    build = arguments.native_build
    arguments.extension = file_of(build) if build else BUILT_IN
    return arguments


if __name__ == "__main__":
    sys.exit(main())
