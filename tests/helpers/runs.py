"""What tests of fine-tuning share: recordings of noise with texts, and what a run has logged."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile


def write_noises(folder: Path, texts: Sequence[str]) -> Path:
    """A recording of noise for each text, each longer than the one before: the annotation file."""
    rng = np.random.default_rng(0)
    entries = []
    for i, text in enumerate(texts):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(8000 + 4000 * i), 16000)
        entries.append({"path": f"{i}.wav", "text": text, "task": "asr"})
    (folder / "annotation.json").write_text(json.dumps({"annotation": entries}))
    return folder / "annotation.json"


def logged(out: Path, step: int, name: str = "loss") -> list[float]:
    """Values of one name that a run had logged when it wrote the snapshot of a step."""
    history = json.loads((out / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]
