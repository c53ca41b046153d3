"""A folder that appears when everything in it is done, or not at all."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` at the end; after an error, or an interruption, there is none.

    What a process that was killed has left of the same `out` is removed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    held = lock(folder)
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def _remove_abandoned(out: Path) -> None:
    for folder in out.parent.iterdir():
        # mkdtemp ends a name with eight of these
        if re.fullmatch(rf"\.{re.escape(out.name)}\.[a-z0-9_]{{8}}", folder.name) and folder.is_dir():
            remove_unless_held(folder)


def remove_unless_held(folder: Path) -> None:
    """Whoever filled it is gone, else it would hold it; where there are no locks it stays."""
    with suppress(BlockingIOError):
        held = lock(folder)
        if held is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


def lock(folder: Path) -> int | None:
    """Hold a folder until the process ends, however that comes; None: this system has no locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise
    except OSError:  # a file system without locks
        os.close(held)
        return None
    return held
