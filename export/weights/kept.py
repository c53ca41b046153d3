"""What a long calibration has done, in a folder beside the bundle: an export that was killed goes on from there."""

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from salmonrun.runtime import __version__
from salmonrun.runtime.arrays import Array
from salmonrun.runtime.bundle import file_sha256
from salmonrun.runtime.errors import BundleError
from salmonrun.runtime.npz_file import read_npz
from salmonrun.training.checkpoint import Checkpoint
from salmonrun.training.data.annotation import Entry
from salmonrun.training.staging import lock, remove_unless_held


@contextmanager
def kept_beside(out: Path, inputs: dict[str, Any]) -> Iterator[Path]:
    """A folder for what is worth keeping until `out` is there; its name is a hash of what decides the results.

    After an error, an interruption or a kill it stays, and the next export of the same inputs to `out` finds it. What
    was kept for other inputs is removed.

    Args:
        out: the bundle.
        inputs: all that the results depend on.

    Raises:
        BundleError: another export of the same inputs to `out` is running.
    """
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    folder = out.parent / f".{out.name}.calibration-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    for other in out.parent.iterdir():
        if other.name.startswith(f".{out.name}.calibration-") and other != folder:
            remove_unless_held(other)
    try:
        held = lock(folder)
    except BlockingIOError as error:
        raise BundleError(
            f"{folder} is in use by another export to {out}: wait for it, or choose another name"
        ) from error
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        logging.getLogger("salmonrun").warning(
            "%s keeps what was calibrated: the same export goes on from there; remove it if there will be none", folder
        )
        raise
    finally:
        if held is not None:
            os.close(held)


def identity(source: Checkpoint, speech: Sequence[Entry]) -> dict[str, Any]:
    """What a calibration's results depend on beside its settings: model, recordings, and the code that computes."""
    recordings = [
        (entry.task, entry.question, entry.text, [file_sha256(path) for path in entry.recordings]) for entry in speech
    ]
    scale = source.config.lora.scale if source.config.lora else None
    code = {"salmonrun": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    return {"checkpoint": source.hashes(), "lora_scale": scale, "recordings": recordings, **code}


def save(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays under their names, all or nothing."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


def load(path: Path) -> dict[str, Array]:
    """What `save` has kept.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        return read_npz(path, sys.maxsize)
    except BundleError as error:
        raise BundleError(
            f"{path}, which an earlier calibration has left, cannot be read ({error.__cause__ or error}): remove "
            f"{path.parent}, and all in it is made anew"
        ) from error
