"""A teacher's distributions on disk: of every token of every answer the k most likely tokens, memory-mapped.

A folder is named by all that the numbers depend on beside the entries: the teacher, the temperature, k. In it, each
process that has filled it has left two files: records of fixed size, one for each token of an answer, and JSON lines
that say whose they are. A line is written behind its records, so what a killed process has left is used up to its last
line; any number may fill the same folder at once.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.data.annotation import Entry
from salmonrun.training.data.cache import recordings_as_they_are
from salmonrun.training.distillation.divergence import SoftTargets, soften
from salmonrun.training.distillation.teacher import Teacher

Asked = tuple[Entry, Sequence[int]]  # an entry and the tokens of its answer
RECORDS, INDEX = ".records", ".jsonl"


@dataclass(frozen=True)
class CacheSettings:
    """What the records depend on beside the entries."""

    teacher: str  # hash of the checkpoint, its prompts with it
    temperature: float
    top_k: int
    vocab: int  # tokens that are told apart, or are among the rest
    dtype: str  # of the teacher's products

    @property
    def key(self) -> str:
        """The name of their folder."""
        return hashlib.sha256(json.dumps(vars(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def record(self) -> np.dtype[Any]:
        """Of a token of an answer: 8 k + 4 bytes."""
        return np.dtype([("token_ids", "<i4", self.top_k), ("log_probs", "<f4", self.top_k + 1)])


class TargetCache:
    """The records in a folder.

    Args:
        root: has a folder for each teacher, temperature and k.
        settings: of these records.
    """

    def __init__(self, root: str | Path, settings: CacheSettings) -> None:
        self._folder = Path(root) / settings.key
        self._settings = settings
        self._places: dict[str, tuple[np.ndarray, int, int]] = {}  # of an entry: mapped records, first, behind the last
        self.open()

    def open(self) -> None:
        """Find what is there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for index in sorted(self._folder.glob(f"*{INDEX}")):
            self._add(index)

    def _add(self, index: Path) -> None:
        file, size = index.with_suffix(RECORDS), self._settings.record.itemsize
        count = file.stat().st_size // size
        if not count:  # an empty file cannot be mapped
            return
        records = np.memmap(file, self._settings.record, mode="r", shape=(count,))
        for line in index.read_text().split("\n")[:-1]:  # what stands behind the last newline was cut
            key, first, end = json.loads(line)
            if end <= count:  # after a power failure lines may be there and records not
                self._places[key] = (records, first, end)

    def missing(self, asked: Sequence[Asked]) -> list[Asked]:
        """Those whose records are not there."""
        return [one for one in asked if _key(one) not in self._places]

    def fill(self, asked: Sequence[Asked], teacher: Teacher, device: torch.device, batch: int, progress: bool) -> None:
        """Have the teacher run on what is missing, and keep it as it comes.

        Args:
            asked: entries and their answers.
            teacher: of the settings.
            device: where it computes.
            batch: how many recordings at once, of similar length.
            progress: show a bar, with the time that is left.
        """
        missing = sorted(
            self.missing(asked), key=lambda one: sum(soundfile.info(p).duration for p in one[0].recordings)
        )
        name, settings = uuid4().hex, self._settings
        written = 0
        with (
            (self._folder / f"{name}{RECORDS}").open("xb") as records,
            (self._folder / f"{name}{INDEX}").open("x") as index,
            tqdm(total=len(missing), disable=not progress, desc="teacher", unit="recording") as bar,
        ):
            for start in range(0, len(missing), batch):
                group = missing[start : start + batch]
                entries, targets = [one[0] for one in group], [one[1] for one in group]
                logits = teacher.teach(entries, targets, device).outputs.token_logits[:, : settings.vocab]
                records.write(_records(soften(logits, settings.temperature, settings.top_k), settings).tobytes())
                records.flush()
                for one in group:
                    index.write(json.dumps([_key(one), written, written + len(one[1])]) + "\n")
                    written += len(one[1])
                index.flush()
                bar.update(len(group))
        self.open()

    def read(self, entries: Sequence[Entry], targets: Sequence[Sequence[int]]) -> SoftTargets:
        """The distributions for the tokens of these answers, one answer after the other.

        Raises:
            CheckpointError: a recording has changed since the cache was filled.
        """
        rows = []
        for one in zip(entries, targets, strict=True):
            place = self._places.get(_key(one))
            if place is None:
                raise CheckpointError(f"{one[0].path} has changed since the teacher heard it; start the run again")
            records, first, end = place
            rows.append(records[first:end])
        read = np.concatenate(rows)
        return SoftTargets(
            torch.from_numpy(read["log_probs"].astype(np.float32)), torch.from_numpy(read["token_ids"].astype(np.int64))
        )


def _key(asked: Asked) -> str:
    entry, target = asked
    text = json.dumps([recordings_as_they_are(entry), entry.task, entry.question, list(target)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _records(targets: SoftTargets, settings: CacheSettings) -> np.ndarray:
    assert targets.token_ids is not None, "soften has a top_k"
    records = np.empty(len(targets.log_probs), settings.record)
    records["token_ids"] = targets.token_ids.cpu().numpy()
    records["log_probs"] = targets.log_probs.cpu().numpy()
    return records
