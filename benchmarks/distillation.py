"""Does a teacher help? python -m benchmarks.distillation FOLDER [RECORDINGS]

A pruned copy of the demo checkpoint is trained on 800 synthetic sentences, or so many, for the same steps without its
teacher and with it, from three seeds, and answers 400 sentences by voices that neither has heard. Needs espeak-ng and
flite, and takes half an hour on one core. What is there already is not made again, so a run that was cut goes on.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.peers.machine import machine
from benchmarks.tables import table
from salmonrun.runtime.commands.main import guarded
from salmonrun.training.evaluation.scores import WordErrors, spell_digits, word_errors

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / "demo" / "checkpoint"
SEEDS, STEPS = (1, 2, 3), 150
RESAMPLES = 10_000
# Of the ways to train, the recipe and what differs from it.
WAYS = {
    "alone": ("heal", ""),
    "logits": ("distill", "distill.cache={folder}/logits"),
    "logits, hidden states, audio embeddings": (
        "distill",
        "distill.cache=null distill.hidden=0.5 distill.hidden_parts=[llm,whisper] distill.qformer=0.5",
    ),
}


def main() -> None:
    """Make, train, answer, compare."""
    folder, recordings = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 800
    train, test, student = (folder / name for name in ("train", "test", "student"))
    data = train / "annotation.json"
    spoken = "--sounds 0 --mixtures 0"
    _make(data, f"synthesize {train} --speech {recordings} {spoken} --speed 0.1 --seed 11")
    _make(test / "annotation.json", f"synthesize {test} --held-out --speech 400 {spoken} --seed 12")
    _make(student, f"prune apply {TEACHER} {student} --llm 0.5 --whisper 0.5 --data {data} --limit 50")
    errors = {"the teacher": [_answer(folder, TEACHER, "teacher")]}
    errors["the student, untrained"] = [_answer(folder, student, "student")]
    for number, way in enumerate(WAYS):
        for seed in SEEDS:
            name = f"{number}-{seed}"
            errors.setdefault(way, []).append(_answer(folder, _train(folder, way, seed, name), name))
    print(f"{machine()['cpu']}; {STEPS} steps, {recordings} recordings\n")
    print(_compare({way: np.array([[tuple(one) for one in run] for run in runs]) for way, runs in errors.items()}))


def _make(path: Path, command: str) -> None:
    """Run a command of salmonrun, unless what it makes is there."""
    if not path.exists():
        subprocess.run([sys.executable, "-m", "salmonrun", *shlex.split(command)], cwd=ROOT, check=True)


def _train(folder: Path, way: str, seed: int, name: str) -> Path:
    """The checkpoint that a way ends with."""
    recipe, options = WAYS[way]
    out, data = folder / "runs" / name, folder / "train" / "annotation.json"
    options = options.format(folder=folder) + f" checkpoint={folder / 'student'} data.train.0.annotation={data}"
    options += f" run.out={out} run.steps={STEPS} run.seed={seed} run.save_every=50"
    resume = "--resume" if any(out.glob("checkpoint-*")) else ""
    command = "distill train" if recipe == "distill" else "finetune"
    if recipe == "distill":
        options += f" distill.teacher={TEACHER}"
    _make(out / "final", f"{command} --cfg-path {ROOT}/recipes/{recipe}.yaml {resume} --options {options}")
    return out / "final"


def _answer(folder: Path, checkpoint: Path, name: str) -> list[WordErrors]:
    """Word errors of each held-out sentence, digits spelled out."""
    out, test = folder / f"{name}.jsonl", folder / "test" / "annotation.json"
    _make(out.with_suffix(".utterances.csv"), f"evaluate {checkpoint} {test} --out {out} --device cpu")
    rows = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    return [word_errors(spell_digits(row["reference"]), spell_digits(row["hypothesis"])) for row in rows]


def _compare(errors: dict[str, np.ndarray]) -> str:
    """A row for each way: word error rate of each seed and of all, and how much less than alone, with 95 % intervals.

    Args:
        errors: of a way, [runs, sentences, 2]: errors and words. Sentences are drawn, and runs, with replacement.
    """
    rng = np.random.default_rng(0)
    sentences = next(iter(errors.values())).shape[1]
    draws = [
        (rng.integers(sentences, size=sentences), rng.integers(len(SEEDS), size=len(SEEDS))) for _ in range(RESAMPLES)
    ]
    alone = errors["alone"]
    rows = []
    for way, runs in errors.items():
        picks = [runs[:, picked][seeds % len(runs)] for picked, seeds in draws]
        less = [
            _rate(alone[:, picked][seeds]) - _rate(pick) for (picked, seeds), pick in zip(draws, picks, strict=True)
        ]
        trained = way in WAYS and way != "alone"
        rows.append(
            [
                way,
                ", ".join(f"{100 * _rate(run):.1f} %" for run in runs),
                f"{100 * _rate(runs):.1f} % {_interval([_rate(pick) for pick in picks])}",
                f"{100 * (_rate(alone) - _rate(runs)):.1f} {_interval(less)}" if trained else "",
            ]
        )
    return table(["trained on", "words wrong, each seed", "all (95 %)", "points less than alone (95 %)"], rows)


def _rate(errors: np.ndarray) -> float:
    return float(errors[..., 0].sum() / errors[..., 1].sum())


def _interval(values: list[float]) -> str:
    low, high = np.percentile(values, [2.5, 97.5])
    return f"({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    sys.exit(guarded(main))
