"""What a model takes on this machine, each measured in a process of its own: its memory holds nothing else."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from salmonrun.runtime.errors import CheckpointError
from salmonrun.runtime.latency.baseline import BaselineProcess
from salmonrun.runtime.latency.config import LatencyConfig
from salmonrun.runtime.latency.recording import Recording
from salmonrun.runtime.latency.sampling import StopRule, repeat
from salmonrun.training.checkpoint import open_checkpoint
from salmonrun.training.evaluation.report.models import Model

METRICS = ("ttft", "tpot", "latency")


@dataclass(frozen=True)
class Cost:
    """By the protocol `reference` of `salmonrun latency`: 10 s of noise, one prefill, one step. Medians."""

    ttft_s: float
    tpot_s: float
    latency_s: float  # of both together
    peak_mb: float  # resident at most since it was loaded, in MiB
    device_mb: float | None  # of the GPU
    repetitions: int
    notes: tuple[str, ...] = ()  # what is to be said of the figures, as that the machine was busy


def measure_cost(model: Model, file: Path, device: str, threads: int, time_limit_s: float) -> Cost:
    """A bundle by the engine; a checkpoint by PyTorch in float32, eager, on the CPU.

    Args:
        model: what is measured.
        file: where `salmonrun latency` writes all it finds of a bundle.
        device: of a bundle.
        threads: that compute.
        time_limit_s: of the repetitions, if the median is not known to 5 % before.

    Raises:
        BaselineError: PyTorch cannot run the checkpoint.
        CheckpointError: the bundle cannot be measured.
    """
    if model.kind == "checkpoint":
        return _of_checkpoint(model, threads, time_limit_s)
    options = ("--protocol", "reference", "--device", device, "--threads", str(threads))
    limits = ("--time-limit", str(time_limit_s), "--json", str(file))
    command = (sys.executable, "-m", "salmonrun", "latency", str(model.path), *options, *limits)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise CheckpointError(f"{model.path} cannot be measured: {said[-1] if said else done.returncode}")
    found = json.loads(file.read_text())
    (protocol,) = found["protocols"]
    (case,) = protocol["cases"]
    ttft_s, tpot_s, latency_s = (case["summary"][metric]["p50"] for metric in METRICS)
    memory = protocol["memory"]
    return Cost(
        ttft_s,
        tpot_s,
        latency_s,
        peak_mb=memory["peak_mb"],
        device_mb=memory["device_mb"],
        repetitions=len(case["samples"]),
        notes=tuple(found["notes"]),
    )


def _of_checkpoint(model: Model, threads: int, time_limit_s: float) -> Cost:
    tasks = open_checkpoint(model.path, verify=False).config.prompt.tasks
    rule = StopRule(time_limit_s=time_limit_s)
    config = LatencyConfig(("reference",), task="asr" if "asr" in tasks else next(iter(tasks)), rule=rule)
    with BaselineProcess(str(model.path), threads) as process:
        cases = process.cases(config, Recording.load(None))["reference"]
        *_, (found,) = repeat(cases, rule)
        memory = process.memory_mb()
    ttft_s, tpot_s, latency_s = (median(found.medians(metric)) for metric in METRICS)
    return Cost(ttft_s, tpot_s, latency_s, memory["peak_mb"], device_mb=None, repetitions=len(found.samples))
