"""One process of `python -m tests.fuzz`: `python -m tests.fuzz.worker EXTENSION TARGET SEED FIRST LAST STEP FOLDER`."""

import mmap
import resource
import struct
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz.targets import target
from tests.helpers.native_build import use

NONE = -1  # no case yet
MATERIAL, FOREIGN = "material", "foreign.txt"  # beside the workers' folders, and in each
BUILT_IN = "built-in"  # in place of the file of an extension: the one that is there
CPU_SECONDS = 10  # that a case may take, all threads together: then the system ends the process
MORE_MEMORY = 2**30  # bytes that the process may have grown by, whatever a case claims


class Progress:
    """Numbers in a mapped file, so that they outlive the process that has written them."""

    _LAYOUT = struct.Struct("<qqqqq")

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(self._LAYOUT.pack(NONE, 0, 0, 0, 0))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    @property
    def case(self) -> int:
        """The one that runs."""
        return int(self._LAYOUT.unpack(self._memory)[0])

    @property
    def refused(self) -> int:
        """Mutants that were not loaded."""
        return int(self._LAYOUT.unpack(self._memory)[1])

    @property
    def late(self) -> int:
        """Mutants that were loaded, and then refused to answer."""
        return int(self._LAYOUT.unpack(self._memory)[2])

    @property
    def ran(self) -> int:
        """Mutants that were loaded and answered."""
        return int(self._LAYOUT.unpack(self._memory)[3])

    @property
    def foreign(self) -> int:
        """Mutants that ended in an error that is none of ours."""
        return int(self._LAYOUT.unpack(self._memory)[4])

    def begin(self, case: int) -> None:
        """Note which one runs."""
        self._memory[:] = self._LAYOUT.pack(case, self.refused, self.late, self.ran, self.foreign)

    def count(self, outcome: str) -> None:
        """Note how it ended."""
        before = {"refused": self.refused, "late": self.late, "ran": self.ran, "foreign": self.foreign}
        before[outcome] += 1
        self._memory[:] = self._LAYOUT.pack(self.case, *before.values())


def main() -> None:
    """Every STEP-th case from FIRST on, below LAST."""
    extension, name, seed, first, last, step, folder = sys.argv[1:]
    if extension != BUILT_IN:
        use(Path(extension))
    run = target(name).run
    progress = Progress(Path(folder) / "progress")
    for case in range(int(first), int(last), int(step)):
        progress.begin(case)
        allow_cpu(CPU_SECONDS)
        before = peak_bytes()
        try:
            outcome = run(int(seed), case, Path(folder), Path(folder).parent / MATERIAL)
            grown = peak_bytes() - before
            assert grown < MORE_MEMORY, f"the process has grown by {grown} bytes"
        except Exception:
            outcome = "foreign"
            with (Path(folder) / FOREIGN).open("a") as file:
                file.write(f"case {case} ends in an error that is none of ours\n{traceback.format_exc()}\n")
        progress.count(outcome)


def allow_cpu(seconds: int) -> None:
    """From now on; a clock on the wall would also count what a busy machine does meanwhile."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds + 1, most))


def peak_bytes() -> int:
    """Memory that this process had at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
