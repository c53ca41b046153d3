"""Features kept on disk from one epoch to the next: all that comes before the first part that is trained."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from tqdm import tqdm

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.data.annotation import Entry
from salmonrun.training.model.features import Features, States


@dataclass(frozen=True)
class FeatureCache:
    """One file per recording: encoder states or spectrograms, kept as they are computed.

    Files are named by the recording (path, size, time of change); the folder, by everything else they depend on.
    """

    folder: Path

    def fill(
        self, entries: Sequence[Entry], compute: Callable[[Entry], Features | States], progress: bool = False
    ) -> None:
        """Compute what is missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = {path: entry for entry in entries if not (path := self._path(entry)).is_file()}
        for path, entry in tqdm(missing.items(), disable=not progress or not missing, desc="features", unit="file"):
            values = compute(entry)
            tensors = {name: value.contiguous().cpu() for name, value in vars(values).items() if value is not None}
            temporary = path.with_suffix(f".{os.getpid()}")
            save_file(tensors, temporary)
            temporary.rename(path)

    def read(self, entry: Entry) -> Features | States:
        """What `fill` computed.

        Raises:
            CheckpointError: the recording has changed since.
        """
        path = self._path(entry)
        if not path.is_file():
            raise CheckpointError(f"{entry.path} has changed since its features were kept; start the run again")
        tensors = load_file(path)
        if "speech" in tensors:
            return States(tensors["speech"], tensors.get("audio"))
        return Features(tensors["log_mel"], tensors.get("fbank"))

    def _path(self, entry: Entry) -> Path:
        text = json.dumps(recordings_as_they_are(entry))
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def recordings_as_they_are(entry: Entry) -> list[tuple[str, int, int]]:
    """Path, size and time of change of an entry's files: by these, what was made of them is found again."""
    files = [(str(path.resolve()), path.stat()) for path in entry.recordings]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
