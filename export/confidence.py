"""The score below which an answer of a bundle is not credible, from the bundle's own answers to speech."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.errors import CheckpointError
from salmonrun.runtime.loading import Loading
from salmonrun.runtime.manifest import ConfidenceThreshold
from salmonrun.runtime.model import Model
from salmonrun.training.data.annotation import Entry, Problem, check_entry, read_annotation
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.model.config import ModelConfig

LARGEST_FALSE_REJECTION = 0.02
LEAST_RECORDINGS = 50  # of fewer, 2 % is not one


def read_speech(annotation: str | Path, config: ModelConfig) -> list[Entry]:
    """The recordings of an annotation in which there is something to be transcribed.

    Raises:
        CheckpointError: the file is no annotation, or an entry cannot be used.
    """
    entries, problems = read_annotation(annotation)
    for entry in entries:
        if reason := check_entry(entry, config.prompt, config.audio):
            problems.append(Problem(entry.dataset, entry.index, reason))
    if problems:
        raise CheckpointError("\n".join(map(str, problems)))
    return [entry for entry in entries if entry.text != config.prompt.nothing]


def measure_threshold(bundle: Bundle, speech: Sequence[Entry], progress: bool = False) -> ConfidenceThreshold | None:
    """Answer every recording greedily, by the first prompt of its task: the threshold for the scores of the answers.

    None if fewer than 50 of them have a score. The bundle is loaded as a whole, as an app would.
    """
    scores = []
    with Engine(Model.of(bundle, Loading(device="cpu"))) as engine:
        audio = engine.bundle.manifest.audio
        for entry in tqdm(speech, desc="confidence", disable=not progress, unit="recording"):
            recording = load_recording(entry, audio)
            scores.append(engine.generate(recording, task=entry.task, question=entry.question or None).score)
    known = [score for score in scores if score is not None]
    return choose_threshold(known, Path(speech[0].dataset).name) if known else None


def choose_threshold(scores: Sequence[float], annotation: str) -> ConfidenceThreshold | None:
    """The highest threshold that rejects at most 2 % of these scores; None of fewer than 50."""
    if len(scores) < LEAST_RECORDINGS:
        return None
    ascending = np.sort(scores)
    threshold = float(ascending[int(LARGEST_FALSE_REJECTION * len(scores))])
    return ConfidenceThreshold(threshold, float(np.mean(ascending < threshold)), len(scores), annotation)
