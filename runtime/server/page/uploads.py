"""Files that visitors of the page have uploaded: for an hour, and no more than fit."""

import os
import time
from pathlib import Path

AGE_S = 3600.0  # after its last use
MOST_BYTES = 2 * 2**30  # of all together


def used(path: str) -> None:
    """A file is asked about: its hour begins anew."""
    os.utime(path)


def sweep(folder: Path, age_s: float = AGE_S, most_bytes: int = MOST_BYTES) -> None:
    """Delete what was not used for long, and beyond `most_bytes` what was not used for longest."""
    found = [(file.stat(), file) for file in folder.rglob("*") if file.is_file()]
    kept, before = 0, time.time() - age_s
    for stat, file in sorted(found, key=lambda one: one[0].st_mtime, reverse=True):
        kept += stat.st_size
        if stat.st_mtime < before or kept > most_bytes:
            file.unlink(missing_ok=True)
