"""One process of `python -m tests.fuzz`: `python -m tests.fuzz.worker EXTENSION SEED FIRST LAST STEP FOLDER`."""

import mmap
import struct
import sys
from pathlib import Path

from tests.fuzz.cases import run
from tests.helpers.native_build import use

NONE = -1  # no case yet


class Progress:
    """Numbers in a mapped file, so that they outlive the process that has written them."""

    _LAYOUT = struct.Struct("<qqq")

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(self._LAYOUT.pack(NONE, 0, 0))
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
    def ran(self) -> int:
        """Mutants that were."""
        return int(self._LAYOUT.unpack(self._memory)[2])

    def begin(self, case: int) -> None:
        """Note which one runs."""
        self._memory[:] = self._LAYOUT.pack(case, self.refused, self.ran)

    def count(self, outcome: str) -> None:
        """Note how it ended."""
        refused, ran = self.refused + (outcome == "refused"), self.ran + (outcome == "ran")
        self._memory[:] = self._LAYOUT.pack(self.case, refused, ran)


def main() -> None:
    """Every STEP-th case from FIRST on, below LAST. An error that is not ours ends it, as a crash does."""
    extension, seed, first, last, step, folder = sys.argv[1:]
    use(Path(extension))
    progress = Progress(Path(folder) / "progress")
    for case in range(int(first), int(last), int(step)):
        progress.begin(case)
        progress.count(run(int(seed), case, Path(folder)))


if __name__ == "__main__":
    main()
