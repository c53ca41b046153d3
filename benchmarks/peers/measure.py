"""Round robin: one measurement of each engine per round, in random order, all in the same run."""

import math
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.peers.engines import Engine
from benchmarks.peers.processes import Worker, WorkerError, closing_all
from benchmarks.peers.shapes import LanguageShape, Shape
from salmonrun.runtime import load_audio
from salmonrun.runtime.config import AudioConfig
from salmonrun.runtime.features import HOP, log_mel
from salmonrun.runtime.latency.recording import STORY

STEPS_LIMIT_S = 1.5  # decoding is measured over the shape's tokens, or as many as this takes
MEMORY_SHARE = 0.75  # of what is available, for workers that are loaded at the same time
WORKER_BYTES = 400e6  # a worker's libraries


@dataclass(frozen=True)
class Method:
    """How often, how long, with how many threads."""

    rounds: int
    min_rounds: int
    budget_s: float  # a slow engine leaves a task after so much time, but not before min_rounds
    threads: int
    seed: int


@dataclass(frozen=True)
class Ready:
    """An engine whose environment and model are there."""

    engine: Engine
    python: Path
    model: Path


@dataclass
class Row:
    """What was measured of one engine in one shape."""

    shape: str
    engine: Engine
    failure: str = ""
    loaded: dict[str, Any] = field(default_factory=dict)
    peak_rss: int = 0
    samples: dict[str, dict[tuple[int, int], float]] = field(default_factory=dict)  # case -> (group, round) -> seconds
    outputs: dict[int, Path] = field(default_factory=dict)  # task -> file


def measure(
    shape: Shape, ready: list[Ready], rows: dict[str, Row], limits: list[dict[str, float]], method: Method, root: Path
) -> None:
    """Fill the rows of one shape, and the limits of the machine that were measured beside."""
    for number, group in enumerate(groups(shape, ready)):
        workers: dict[str, Worker] = {}
        with closing_all(workers):
            start(workers, group, rows, method, root)
            _measure_group(shape, number, workers, rows, limits, method, root)


def start(workers: dict[str, Worker], group: list[Ready], rows: dict[str, Row], method: Method, root: Path) -> None:
    """Start and load the workers of a group, and the one that measures the machine."""
    asked: list[tuple[str, Path, str, Path, Mapping[str, Any]]]
    asked = [("limits", Path(sys.executable), "limits_worker", Path(), {})]
    asked += [(item.engine.name, item.python, item.engine.worker, item.model, item.engine.options) for item in group]
    for name, python, script, model, options in tqdm(asked, desc="loading", unit="engine"):
        row = rows.get(name)
        log = root / "logs" / f"worker-{row.shape if row else 'machine'}-{name}.log"
        try:
            workers[name] = Worker(python, script, method.threads, log)
            loaded = workers[name].request(do="load", model=str(model), threads=method.threads, options=dict(options))
            if row:
                row.loaded = loaded
        except (OSError, WorkerError) as error:
            _give_up(workers, rows, name, error)


def crash(item: Ready, root: Path) -> str:
    """How its worker dies of a first prompt; empty where it lives, or says itself what is wrong."""
    worker = Worker(item.python, item.engine.worker, 1, root / "logs" / f"crash-{item.engine.name}.log")
    try:
        worker.request(do="load", model=str(item.model), threads=1, options=dict(item.engine.options))
        worker.request(do="answer", prompt=[300] * 32, tokens=1, limit_s=STEPS_LIMIT_S)
    except WorkerError as error:
        return "" if worker.process.poll() is None else str(error).split(" (")[0]
    finally:
        worker.close()
    return ""


def groups(shape: Shape, ready: list[Ready]) -> Iterator[list[Ready]]:
    """Engines that fit into memory beside each other, the reference (if it is ready) with each group."""
    weights = sum(math.prod(dims) for _, dims in shape.tensors())
    available = MEMORY_SHARE * _available_memory()

    def size(item: Ready) -> float:
        return weights * item.engine.bytes_per_weight + WORKER_BYTES

    references = [item for item in ready if item.engine.reference]
    group, used = list(references), sum(map(size, references))
    for item in ready:
        if item.engine.reference:
            continue
        if len(group) > len(references) and used + size(item) > available:
            yield group
            group, used = list(references), sum(map(size, references))
        group.append(item)
        used += size(item)
    yield group


def _available_memory() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def tasks(shape: Shape, root: Path) -> list[dict[str, Any]]:
    """The requests of a shape: prompts of random tokens, or a recording's log-mel spectrogram."""
    if isinstance(shape, LanguageShape):
        ids = np.random.default_rng(0).integers(300, shape.config["vocab_size"], max(shape.prompts)).tolist()
        return [
            {"do": "answer", "prompt": ids[:count], "tokens": shape.tokens if i == 1 else 0, "limit_s": STEPS_LIMIT_S}
            for i, count in enumerate(shape.prompts)
        ]
    pcm, config = load_audio(STORY).pcm, AudioConfig(n_mels=shape.config["num_mel_bins"])
    requests = []
    for seconds in shape.seconds:
        path = root / "inputs" / f"{shape.name}-{seconds}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = pcm[: seconds * config.sample_rate]
        np.save(path, log_mel(samples, config, seconds * config.sample_rate // HOP))
        requests.append({"do": "encode", "log_mel": str(path), "seconds": seconds})
    return requests


def times(request: dict[str, Any], reply: dict[str, Any]) -> dict[str, float]:
    """Case -> seconds, of one reply."""
    if request["do"] == "encode":
        return {f"encode {request['seconds']} s": reply["encode_s"]}
    prefill = {f"prefill {len(request['prompt'])}": reply["prefill_s"]}
    return prefill | ({"decode": reply["step_s"]} if reply["steps"] else {})


def _measure_group(
    shape: Shape,
    number: int,
    workers: dict[str, Worker],
    rows: dict[str, Row],
    limits: list[dict[str, float]],
    method: Method,
    root: Path,
) -> None:
    order = random.Random(method.seed)
    for task, request in enumerate(tasks(shape, root)):
        spent = dict.fromkeys(workers, 0.0)
        _warm_up(task, request, workers, rows, root)
        bar = tqdm(range(method.rounds), desc=f"{shape.name}, {'/'.join(times(request, _NO_REPLY))}", unit="round")
        for turn in bar:
            names = [
                name
                for name in workers
                if turn < method.min_rounds or spent[name] < method.budget_s or rows[name].engine.reference
            ]
            for name in order.sample(names, len(names)):
                bar.set_postfix_str(name)
                if name == "limits":
                    limits.append(workers[name].request(do="measure"))
                    continue
                try:
                    reply = workers[name].request(**request)
                except WorkerError as error:
                    _give_up(workers, rows, name, error)
                    continue
                rows[name].peak_rss = reply["peak_rss"]
                for case, seconds in times(request, reply).items():
                    rows[name].samples.setdefault(case, {})[number, turn] = seconds
                spent[name] += reply.get("encode_s", 0.0) + reply.get("prefill_s", 0.0)
                spent[name] += reply.get("steps", 0) * (reply.get("step_s") or 0.0)


_NO_REPLY = {"encode_s": 0.0, "prefill_s": 0.0, "step_s": 0.0, "steps": 1}


def _warm_up(task: int, request: dict[str, Any], workers: dict[str, Worker], rows: dict[str, Row], root: Path) -> None:
    """Once each, not counted; the outputs are kept to be compared."""
    for name in tqdm(list(workers), desc="warming up", unit="engine", leave=False):
        if name == "limits":
            continue
        path = root / "outputs" / f"{rows[name].shape}-{name}-{task}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            workers[name].request(**request, output=str(path))
            rows[name].outputs[task] = path
        except WorkerError as error:
            _give_up(workers, rows, name, error)


def _give_up(workers: dict[str, Worker], rows: dict[str, Row], name: str, error: Exception) -> None:
    """Its row says why; the others go on. Without the machine's limits or the reference there is nothing to say."""
    if worker := workers.pop(name, None):
        worker.close()
    if name == "limits":
        raise error
    rows[name].failure = str(error)
