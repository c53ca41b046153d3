"""Features kept on disk from one epoch to the next: all that comes before the first part that is trained."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from salmonrun.runtime.errors import CheckpointError, ResourceError
from salmonrun.training.data.annotation import Entry
from salmonrun.training.model.features import Features, States
from salmonrun.training.tensors import mapped, write_safetensors

_DIGEST = "sha256"  # in a file's metadata, of its tensors
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureCache:
    """One file per recording: encoder states or spectrograms, kept as they are computed.

    Files are named by the recording (path, size, time of change); the folder, by everything else they depend on.
    """

    folder: Path

    def fill(
        self, entries: Sequence[Entry], compute: Callable[[Entry], Features | States], progress: bool = False
    ) -> int:
        """Compute what is missing, and anew what is damaged: how many files were. The log has that as a warning."""
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = {self._path(entry): entry for entry in entries}
        damaged = {path for path in wanted if path.is_file() and _read(path) is None}
        missing = {path: entry for path, entry in wanted.items() if path in damaged or not path.is_file()}
        if damaged:
            _log.warning("%s: %d of %d files are damaged, and are made again", self.folder, len(damaged), len(wanted))
        for path, entry in tqdm(missing.items(), disable=not progress or not missing, desc="features", unit="file"):
            values = compute(entry)
            tensors = {name: value.contiguous().cpu() for name, value in vars(values).items() if value is not None}
            temporary = path.with_suffix(f".{os.getpid()}")
            write_safetensors(tensors, temporary, {_DIGEST: _digest(tensors)})
            temporary.rename(path)
        return len(damaged)

    def read(self, entry: Entry) -> Features | States:
        """What `fill` computed.

        Raises:
            CheckpointError: the recording has changed since, or the file is damaged.
        """
        path = self._path(entry)
        if not path.is_file():
            raise CheckpointError(f"{entry.path} has changed since its features were kept; start the run again")
        tensors = _read(path)
        if tensors is None:
            raise CheckpointError(f"{path} is damaged; start the run again, which makes it again")
        if "speech" in tensors:
            return States(tensors["speech"], tensors.get("audio"))
        return Features(tensors["log_mel"], tensors.get("fbank"))

    def _path(self, entry: Entry) -> Path:
        text = json.dumps(recordings_as_they_are(entry))
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; None if they are not those that were written."""
    try:
        with mapped(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            digest = (file.metadata() or {}).get(_DIGEST)
    except ResourceError:  # an OSError that is not the file's fault
        raise
    except (SafetensorError, OSError):
        return None
    return tensors if tensors.keys() & {"speech", "log_mel"} and digest == _digest(tensors) else None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def recordings_as_they_are(entry: Entry) -> list[tuple[str, int, int]]:
    """Path, size and time of change of an entry's files: by these, what was made of them is found again."""
    files = [(str(path.resolve()), path.stat()) for path in entry.recordings]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
