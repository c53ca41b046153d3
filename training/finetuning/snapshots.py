"""Snapshots in a run's folder: written beside their place and renamed, and the newest that is whole."""

import json
import re
import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.file_kind import ends_as_archive

TRAINED_FILE, NORMS_FILE, STATE_FILE = "trained.pt", "gradient_norms.json", "trainer_state.json"
PARTIAL = ".partial"  # in the run's folder: snapshots that are being written
# An optimizer that is sharded is kept under a name of its own; transformers begins anew, unasked, where it finds none.
NEEDED = (TRAINED_FILE, NORMS_FILE, STATE_FILE, "optimizer*", "scheduler.pt")


def last_snapshot(out: Path) -> Path | None:
    """The snapshot of the highest step, whole or not."""
    last = get_last_checkpoint(out) if out.is_dir() else None
    return Path(last) if last else None


def newest_whole(out: Path) -> tuple[Path, list[str]]:
    """The snapshot to go on from, and a line for each newer one that is passed over.

    Raises:
        ConfigError: there is none.
    """
    snapshots = [folder for folder in out.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", folder.name)]
    skipped: list[str] = []
    for folder in sorted(snapshots, key=lambda folder: int(folder.name.split("-")[1]), reverse=True):
        reason = _broken(folder)
        if not reason:
            return folder, skipped
        skipped.append(f"{folder} is skipped: {reason}")
    raise ConfigError("\n".join([*skipped, f"{out} has no snapshot to resume from; start a run in another run.out"]))


def publish(partial: Path, snapshot: Path) -> None:
    """Give a snapshot that is written to the end its name; a broken one that was passed over makes room."""
    if snapshot.exists():
        shutil.rmtree(snapshot)
    partial.rename(snapshot)
    shutil.rmtree(partial.parent, ignore_errors=True)


def _broken(folder: Path) -> str:
    """Why a snapshot cannot be gone on from, as when it was copied in part; empty if it can."""
    for name in NEEDED:
        if not any(folder.glob(name)):
            return f"{name} is missing"
    for file in sorted(folder.glob("*.pt")) + sorted(folder.glob("*.pth")):
        if not ends_as_archive(file):  # torch's files are; their table of contents is at the end
            return f"{file.name} is cut off"
    for name in (STATE_FILE, NORMS_FILE):
        try:
            json.loads((folder / name).read_text())
        except ValueError:
            return f"{name} is cut off"
    return ""
