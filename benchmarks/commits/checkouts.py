"""Two checkouts to compare: a commit in a temporary work tree, and the files as they lie here."""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.processes import Worker

HERE = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "inside" / "worker"  # the same one runs in both
CODE = ("export", "training", "runtime", "kernels")


@dataclass(frozen=True)
class Checkout:
    """The code of a commit, or of one with changes."""

    name: str
    path: Path
    commit: str
    changed: bool  # whether files of the code differ from the commit's

    def describe(self) -> str:
        """For a table's head."""
        return f"{self.name} {self.commit[:10]}{' with uncommitted changes' if self.changed else ''}"

    def worker(self, threads: int, log: Path) -> Worker:
        """A process that runs this code and nothing else of ours; its log has what it prints."""
        return Worker(Path(sys.executable), str(WORKER), threads, log, self.path)

    def fingerprint(self) -> str:
        """Of all code that has a part in an export."""
        found = hashlib.sha256()
        for folder in CODE:
            for path in sorted((self.path / folder).rglob("*.py")):
                found.update(f"{path.relative_to(self.path)}\0".encode() + path.read_bytes() + b"\0")
        return found.hexdigest()


@contextmanager
def both(base: str) -> Iterator[tuple[Checkout, Checkout]]:
    """The commit called `base`, checked out for as long as the context lasts, and the files here.

    Raises:
        ValueError: there is no such commit.
    """
    try:
        commit = _git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{base!r} is no commit of {HERE}; give a hash, a branch or a tag") from error
    changed = bool(_git("status", "--porcelain", "--", *CODE, "salmonrun"))
    with tempfile.TemporaryDirectory(prefix="salmonrun-base-") as scratch:
        path = Path(scratch).resolve() / "checkout"
        _git("worktree", "add", "--detach", str(path), commit)
        try:
            yield (
                Checkout("base", path, commit, changed=False),
                Checkout("new", HERE, _git("rev-parse", "HEAD"), changed),
            )
        finally:
            _git("worktree", "remove", "--force", str(path))


def _git(*arguments: str) -> str:
    command = ("git", "-C", str(HERE), *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
