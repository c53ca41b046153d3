"""A point: pruned, exported, measured, healed, exported, measured. What is there is not made again.

Each step is the command of the command line, in a process of its own.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.pruning.points import Point
from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.checkpoint import open_checkpoint
from salmonrun.training.evaluation.report.cost import Cost, measure_cost
from salmonrun.training.evaluation.report.measured import Measured
from salmonrun.training.evaluation.report.models import Model
from salmonrun.training.evaluation.report.report import Report
from salmonrun.training.pruning.predict import Cost as Sizes
from salmonrun.training.pruning.predict import cost as sizes

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, eq=False)
class Found:
    """A point before and after it was healed; None: it was not, or its export was `refused`."""

    point: Point
    before: Measured | None
    after: Measured | None
    size: Sizes  # of the pruned checkpoint, by its sizes alone
    refused: str = ""
    cost: Cost | None = None  # measured in turn with the others; None: it was not


@dataclass(frozen=True)
class Curve:
    """Where it is made, and of what."""

    root: Path
    checkpoint: Path
    calibration: Path  # annotation that layers are chosen on
    recipe: Path  # that heals
    options: tuple[str, ...]  # of `salmonrun finetune --options`
    export: tuple[str, ...]  # options of `salmonrun export`
    threads: int

    def run(self, *command: str) -> None:
        """A command of salmonrun; what it prints goes to a log.

        Raises:
            CheckpointError: it failed, with its last line.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "log").open("a") as log:
            log.write(f"\n$ salmonrun {shlex.join(command)}\n")
            log.flush()
            start = log.tell()
            variables = os.environ | dict.fromkeys(THREAD_VARIABLES, str(self.threads))
            line = (sys.executable, "-m", "salmonrun", *command)
            code = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, env=variables, check=False).returncode
        if code:
            said = (self.root / "log").read_bytes()[start:].decode(errors="replace").strip().splitlines()
            raise CheckpointError(f"salmonrun {command[0]} ended with {code}: {said[-1] if said else 'no word'}")

    def measure(self, point: Point, report: Report, heal: bool) -> Found:
        """A point, measured; what is not there of it is made, but it is only trained on to `heal`."""
        folder = self._folder(point)
        pruned = self._pruned(point, folder) if point.options else self.checkpoint
        size = sizes(open_checkpoint(pruned).config)
        before, refused = self._measured(point.name, pruned, folder / "before", report)
        if not heal and not (folder / "healed" / "final").is_dir():
            return Found(point, before, None, size, refused)
        healed = self._healed(pruned, folder / "healed")
        after, refused_after = self._measured(f"{point.name}, healed", healed, folder / "after", report)
        return Found(point, before, after, size, refused_after or refused)

    def timed(self, found: Sequence[Found], rounds: int, time_limit_s: float) -> list[Found]:
        """What the points take, all in turn and so often: what else the machine does meets all alike.

        The fastest of a point counts, since others only make it slower. Healed or not, it takes the same.
        """
        bundles = {one: folder for one in found if (folder := self._bundle(one.point))}
        taken: dict[Found, list[Cost]] = {one: [] for one in bundles}
        for _ in range(rounds):
            for one, bundle in bundles.items():
                file = self.root / "latency.json"
                model = Model(one.point.name, bundle)
                taken[one].append(measure_cost(model, file, "cpu", self.threads, time_limit_s))
        return [
            replace(one, cost=min(taken[one], key=lambda cost: cost.latency_s)) if one in taken else one
            for one in found
        ]

    def _bundle(self, point: Point) -> Path | None:
        known = (self._folder(point) / name for name in ("before", "after"))
        return next((bundle for bundle in known if bundle.is_dir()), None)

    def _folder(self, point: Point) -> Path:
        return self.root / point.name.replace(" ", "-").replace(",", "").replace("%", "")

    def sensitivity(self) -> Path:
        """How much each layer is needed, measured once for all points."""
        out = self.root / "sensitivity"
        if not (out / "sensitivity.json").is_file():
            parts = ("--part", "llm", "--part", "whisper")
            data = ("--data", str(self.calibration), "--out", str(out))
            self.run("prune", "sensitivity", str(self.checkpoint), *data, *parts)
        return out

    def _pruned(self, point: Point, folder: Path) -> Path:
        out = folder / "pruned"
        if not out.is_dir():
            chosen = ("--measured", str(self.sensitivity()), "--data", str(self.calibration))
            self.run("prune", "apply", str(self.checkpoint), str(out), *point.options, *chosen)
        return out

    def _healed(self, pruned: Path, out: Path) -> Path:
        if not (out / "final").is_dir():
            resume = ("--resume",) if any(out.glob("checkpoint-*")) else ()
            options = (f"checkpoint={pruned}", f"run.out={out}", *self.options)
            self.run("finetune", "--cfg-path", str(self.recipe), *resume, "--options", *options)
            for snapshot in out.glob("checkpoint-*"):  # with the optimizer's state, several times the model
                shutil.rmtree(snapshot)
        return out / "final"

    def _measured(self, name: str, checkpoint: Path, bundle: Path, report: Report) -> tuple[Measured | None, str]:
        """What was measured of a checkpoint's bundle, or why there is none: too far from PyTorch, say."""
        try:
            if not bundle.is_dir():
                self.run("export", str(checkpoint), str(bundle), *self.export, "--quiet")
            return report.measure(Model(name, bundle)), ""
        except CheckpointError as error:
            return None, str(error)
