"""`python -m tests.kill_storm`: commands that write are killed. Nothing half-made opens, and the next run is whole."""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.bundle import file_sha256, open_bundle
from salmonrun.runtime.errors import CheckpointError, SalmonrunError
from salmonrun.runtime.manifest import MANIFEST
from salmonrun.training.checkpoint import open_checkpoint
from salmonrun.training.data.annotation import read_annotation
from salmonrun.training.evaluation.answers import read_answers

RECORDINGS = 12
SPOKEN = ("--speech", "6", "--sounds", "4", "--mixtures", "2")
RECIPE = """
checkpoint: {checkpoint}
data: {{train: [{{annotation: "{annotation}"}}]}}
train: {{qformer: true, lora: true}}
run: {{out: run, steps: 8, batch_size: 2, save_every: 2, log_every: 2}}
"""


@dataclass(frozen=True)
class Victim:
    """A command, what it writes, and how that is compared with what an undisturbed run has written."""

    name: str
    arguments: Callable[[Path], Sequence[str | Path]]  # of the file or folder that it writes
    digest: Callable[[Path], object]
    out: str
    product: str = ""  # in the folder that it writes: what it is made for, and whole as soon as it is there


def main() -> int:
    """Kill each in turn; 1 where something half-made opened, or a later run was another."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill_storm", description=__doc__)
    parser.add_argument("--kills", type=int, default=40, help="of all commands together, or a few more (default: 40)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, faults = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        victims = prepare(root)
        for victim in victims:
            faults += storm(victim, root / victim.name, -(-arguments.kills // len(victims)), rng)
    print(f"{faults} faults")
    return int(faults > 0)


def prepare(root: Path) -> list[Victim]:
    """A tiny checkpoint, recordings, and what is done with them."""
    checkpoint, bundle, annotation = root / "checkpoint", root / "bundle", root / "a.json"
    run(["init", checkpoint, "--preset", "tiny"])
    run(["export", checkpoint, bundle])
    rng = np.random.default_rng(0)
    for i in range(RECORDINGS):
        soundfile.write(root / f"{i}.wav", 0.1 * rng.standard_normal(16000), 16000)
    entries = [{"path": f"{i}.wav", "text": "one two", "task": "asr"} for i in range(RECORDINGS)]
    annotation.write_text(json.dumps({"annotation": entries}))
    recipe = root / "recipe.yaml"
    recipe.write_text(RECIPE.format(checkpoint=checkpoint, annotation=annotation))
    loose = ["--parity-budget", "9", "--token-agreement", "0"]  # random weights are sure of nothing
    calibrated: list[str | Path] = ["--llm-precision", "int4", *loose, "--calibration-speech", annotation]
    return [
        Victim("init", lambda out: ["init", out, "--preset", "tiny"], checkpoint_digest, "checkpoint"),
        Victim("export", lambda out: ["export", checkpoint, out], bundle_digest, "bundle"),
        Victim("calibrate", lambda out: ["export", checkpoint, out, *calibrated], bundle_digest, "bundle"),
        Victim("finetune", partial(finetune, recipe), checkpoint_digest, "run", "final"),
        Victim("synthesize", lambda out: ["synthesize", out, *SPOKEN], recordings_digest, "data", "annotation.json"),
        Victim("evaluate", lambda out: ["evaluate", bundle, annotation, "--out", out], answers_digest, "a.jsonl"),
    ]


def finetune(recipe: Path, out: Path) -> list[str | Path]:
    """From the beginning, or from the newest snapshot."""
    resumed = ["--resume"] if next(out.glob("checkpoint-*"), None) else []
    return ["finetune", "--cfg-path", recipe, *resumed, "--options", f"run.out={out}"]


def checkpoint_digest(out: Path) -> object:
    return open_checkpoint(out).sha256()


def bundle_digest(out: Path) -> object:
    """Of all that is proven but what was measured, which names versions and times."""
    files = open_bundle(out).manifest.files
    return {name: spec.sha256 for name, spec in files.items() if name not in ("parity.json", "golden.npz")}


def recordings_digest(annotation: Path) -> object:
    """Of all that was said, played and written down."""
    files = [path for path in annotation.parent.rglob("*") if path.is_file()]
    return {path.relative_to(annotation.parent).as_posix(): file_sha256(path) for path in files}


def answers_digest(out: Path) -> object:
    return [(row.index, row.hypothesis) for row in read_answers(out)[1]]


def storm(victim: Victim, folder: Path, kills: int, rng: random.Random) -> int:
    """Kill the command so many times, each time after another part of the time that it takes: the faults found."""
    folder.mkdir()
    started = time.monotonic()
    run(victim.arguments(folder / "whole" / victim.out))
    took, expected, faults = (
        time.monotonic() - started,
        victim.digest(folder / "whole" / victim.out / victim.product),
        0,
    )
    out = folder / "killed" / victim.out
    product = out / victim.product
    for number in range(kills):
        process = subprocess.Popen(command(victim.arguments(out)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.3, 1.0) * took)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        faults += len(found := half_made(product.parent, product))
        print(f"{victim.name}, kill {number + 1}: {'; '.join(found) or 'fine'}", flush=True)
        if process.returncode == 0 and out.is_dir():
            shutil.rmtree(out)
    if not product.is_dir():
        run(victim.arguments(out))
    same = victim.digest(product) == expected
    leftovers = [path.name for path in product.parent.iterdir() if path.name.startswith(".")]
    print(f"{victim.name}: {'the same' if same else 'ANOTHER'} as undisturbed, leftovers {leftovers}", flush=True)
    return faults + (not same) + bool(leftovers)


def half_made(folder: Path, out: Path) -> list[str]:
    """Folders beside `out` that open as bundles or checkpoints, or an `out` that does not."""
    if out.name == "annotation.json":  # recordings beside it may be anything, until it is there
        return [f"{out.name} is not whole"] if out.exists() and not opens(open_recordings, out) else []
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.is_dir() or (path != out and path.name.startswith("checkpoint-")):
            continue  # which snapshots are whole is for --resume to tell
        bundle = (path / MANIFEST).exists()
        whole = opens(open_bundle if bundle else open_checkpoint, path)
        if whole and path != out and bundle:
            found.append(f"{path.name} opens")
        elif not whole and path == out:
            found.append(f"{path.name} does not open")
    return found


def opens(how: Callable[[Path], object], path: Path) -> bool:
    """Whether it is what it should be."""
    try:
        how(path)
    except SalmonrunError:
        return False
    return True


def open_recordings(annotation: Path) -> None:
    """Read all that an annotation names.

    Raises:
        AudioError: one is not whole.
        CheckpointError: the annotation is not.
    """
    entries, problems = read_annotation(annotation)
    if problems:
        raise CheckpointError(str(problems[0]))
    for entry in entries:
        load_audio(entry.path, min_s=0, max_s=60)


def command(arguments: Sequence[str | Path]) -> list[str]:
    return [sys.executable, "-m", "salmonrun", *map(str, arguments)]


def run(arguments: Sequence[str | Path]) -> None:
    """To its end."""
    for part in arguments:
        if isinstance(part, Path):
            part.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(command(arguments), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
