"""Transcripts of a folder's recordings, or a bucket's, by engines on the machines of a Ray cluster.

The files that were written say what is done: a run that was killed is gone on with by running it again. A transcript is
written under another name and moved, so there is no half of one; and a recording has one place, so there are no two.
"""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow.fs
import ray
import ray.data

from salmonrun.runtime.engine import Engine
from salmonrun.runtime.errors import AudioNotFoundError, ConfigError, SalmonrunError
from salmonrun.runtime.transcript import FORMATS, of_segments

SUFFIXES = frozenset({".aif", ".aiff", ".au", ".flac", ".mp3", ".ogg", ".opus", ".wav"})
TOGETHER = 8  # recordings that an engine answers about at once: they decode together


@dataclass(frozen=True)
class Place:
    """A folder of any file system that pyarrow has."""

    files: pyarrow.fs.FileSystem
    path: str

    @classmethod
    def of(cls, name: str) -> "Place":
        """A path, or a URI: s3://, gs://, hdfs://, ...

        Raises:
            ConfigError: no such file system.
        """
        if "://" not in name:
            return cls(pyarrow.fs.LocalFileSystem(), str(Path(name).absolute()))
        try:
            return cls(*pyarrow.fs.FileSystem.from_uri(name))
        except (pyarrow.ArrowInvalid, NotImplementedError) as error:
            raise ConfigError(f"{name!r} is no place of files that pyarrow knows: {error}") from error

    def names(self) -> list[str]:
        """All files below it, in order, as paths relative to it; none if it is not there."""
        found = self.files.get_file_info(pyarrow.fs.FileSelector(self.path, allow_not_found=True, recursive=True))
        files = (one.path for one in found if one.type == pyarrow.fs.FileType.File)
        return sorted(str(PurePosixPath(path).relative_to(self.path)) for path in files)

    def open(self, name: str) -> Any:
        """A recording for an engine: a path where that will do, since files are not held in memory."""
        path = f"{self.path}/{name}"
        return path if isinstance(self.files, pyarrow.fs.LocalFileSystem) else self.files.open_input_stream(path)

    def write(self, name: str, text: str) -> None:
        """A file that is there as a whole or not at all."""
        path = f"{self.path}/{name}"
        self.files.create_dir(str(PurePosixPath(path).parent), recursive=True)
        part = f"{path}.{uuid.uuid4().hex}.part"  # nobody else's: engines of a run that was killed live for a moment
        with self.files.open_output_stream(part) as file:
            file.write(text.encode())
        self.files.move(part, path)


@dataclass(frozen=True)
class Work:
    """What each engine is told."""

    bundle: str  # a folder that every node has
    inputs: Place
    output: Place
    form: str = "json"  # of FORMATS
    task: str | None = None
    prompt: str | None = None
    question: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1

    def target(self, recording: str) -> str:
        """The name of a recording's transcript. Its suffix stays: there may be a.wav and a.flac."""
        return f"{recording}.{self.form}"


class Transcriber:
    """What an actor of Ray Data holds: an engine, and the places that it reads and writes."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._engine = Engine.load(work.bundle, device=work.device, threads=work.threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write the transcripts of recordings: `name`, `audio_s`, and `error`, which is empty where there is one."""
        names = [str(name) for name in batch["name"]]
        with ThreadPoolExecutor(len(names)) as pool:
            seconds, errors = zip(*pool.map(self._transcribe, names), strict=True)
        return {"name": names, "audio_s": list(seconds), "error": list(errors)}

    def _transcribe(self, name: str) -> tuple[float, str]:
        work = self._work
        started = time.perf_counter()
        try:
            recording = work.inputs.open(name)
            segments, info = self._engine.transcribe(
                recording, task=work.task, prompt=work.prompt, question=work.question
            )
            transcript = of_segments(name, list(segments), info, time.perf_counter() - started, None)
            work.output.write(work.target(name), FORMATS[work.form](transcript))
        except (SalmonrunError, OSError) as error:
            return 0.0, str(error)
        return info.duration_s, ""


@dataclass(frozen=True)
class Outcome:
    """What became of a recording."""

    name: str  # relative to the inputs
    audio_s: float
    error: str  # why there is no transcript; empty: there is one


def left(work: Work) -> list[str]:
    """Recordings that have no transcript yet.

    Raises:
        AudioNotFoundError: there are no recordings at all.
    """
    names = [name for name in work.inputs.names() if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not names:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise AudioNotFoundError(f"{work.inputs.path!r} has no recordings; expected files that end in {suffixes}")
    written = set(work.output.names())
    return [name for name in names if work.target(name) not in written]


def transcribe(work: Work, names: list[str], workers: int | None) -> Iterator[Outcome]:
    """Transcribe, as recordings are done.

    Args:
        work: what to do.
        names: of the recordings, relative to the inputs.
        workers: engines at once, if the cluster has room for them; None: as many as its CPUs are for.
    """
    ray.init(ignore_reinit_error=True)
    workers = workers or max(1, int(ray.cluster_resources()["CPU"]) // work.threads)
    blocks = -(-len(names) // TOGETHER)
    done = ray.data.from_items([{"name": name} for name in names], override_num_blocks=blocks).map_batches(
        Transcriber,
        fn_constructor_kwargs={"work": work},
        batch_size=TOGETHER,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        num_cpus=work.threads,
        num_gpus=int(work.device == "cuda"),
    )
    for row in done.iter_rows():
        yield Outcome(**row)
