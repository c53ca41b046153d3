"""Steps one after the other, each in a process of its own and with a limit of time; what is done is not done again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 480  # of a step: machines with GPUs are lent by the minute


@dataclass(frozen=True)
class Plan:
    """Where a plan runs and what with."""

    device: str
    out: Path  # checkpoints, bundles, and a folder of JSON for the device
    preset: str  # of the checkpoint of random weights that is measured: a published size, or a tiny one
    seconds: float  # that a figure may be measured for

    @property
    def on_gpu(self) -> bool:
        """Whether it is the real thing."""
        return self.device != "cpu"

    def file(self, step: str) -> Path:
        """Where a step's outcome is kept."""
        return self.out / self.device.replace(":", "") / f"{step}.json"

    def arguments(self) -> list[str]:
        """As `add_plan_arguments` takes it."""
        settings = (("--device", self.device), ("--out", self.out), ("--preset", self.preset))
        return [str(word) for pair in (*settings, ("--seconds", self.seconds)) for word in pair]


def run(plan: Plan, steps: Sequence[str], limit_s: float = LIMIT_S) -> dict[str, Any]:
    """Do the steps that were not done before, and those again that failed.

    Returns:
        the outcome of each: {"ok", "seconds", and "found" or "error"}.
    """
    for step in steps:
        if not outcome_of(plan, step).get("ok"):
            print(f"{step} ...", flush=True)
            _run_alone(plan, step, limit_s)
        outcome = outcome_of(plan, step)
        print(f"{step}: {'ok' if outcome['ok'] else outcome['error']} ({outcome['seconds']:.0f} s)", flush=True)
    return {step: outcome_of(plan, step) for step in steps}


def outcome_of(plan: Plan, step: str) -> dict[str, Any]:
    """What a step has left; nothing, if it was not done."""
    file = plan.file(step)
    outcome: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return outcome


def keep(plan: Plan, step: str, outcome: dict[str, Any]) -> None:
    """Write an outcome, whole or not at all."""
    path = plan.file(step)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(outcome, indent=1) + "\n")
    part.rename(path)


def _run_alone(plan: Plan, step: str, limit_s: float) -> None:
    """The step writes its outcome itself, unless it dies or takes too long: then all that it started ends with it."""
    plan.file(step).unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.step", step, *plan.arguments()]
    started = time.perf_counter()
    process = subprocess.Popen(command, start_new_session=True)
    try:
        error = f"it ended with status {process.wait(limit_s)}"
    except subprocess.TimeoutExpired:
        error = f"it took more than {limit_s:g} s"
    finally:
        _end(process)
    if not outcome_of(plan, step):
        keep(plan, step, {"ok": False, "seconds": time.perf_counter() - started, "error": error})


def _end(process: subprocess.Popen[bytes]) -> None:
    """The step and whatever it has left running, such as a server."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
