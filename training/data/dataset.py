"""Entries to batches: audio, features and token ids, drawn by weight and grouped by length."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
from torch.utils.data import Dataset, Sampler

from salmonrun.runtime.config import AudioConfig, PromptConfig
from salmonrun.runtime.errors import CheckpointError
from salmonrun.runtime.prompt import PromptIds, prompt_ids, task_prompt
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.data.annotation import Entry, Problem, part_usable, read_annotation
from salmonrun.training.data.augment import augment_audio, mask_features, noise_files
from salmonrun.training.data.cache import FeatureCache
from salmonrun.training.data.config import Augmentation, DataConfig, DataSet
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.model.features import (
    FeatureBatch,
    Features,
    FrontEnd,
    StateBatch,
    States,
    collate,
    collate_states,
)
from salmonrun.training.model.labels import pad_labels


@dataclass(frozen=True)
class Example:
    """One entry, ready to be batched."""

    features: Features | States
    prompt: PromptIds
    target: list[int]  # token ids of the text and the end symbol
    transcript: str  # for the auxiliary character loss; empty where the text is no transcript
    entry: Entry  # it was made of


class SpeechDataset(Dataset[Example]):
    """Entries whose audio is read, augmented and turned into features on demand.

    It is sent to loader workers, so it holds what they need and no model.

    Args:
        entries: that can be used, see load_entries.
        weights: how often each is drawn, relative to the others.
        front_end: of the model.
        prompts: of the model.
        tokenizer: of the model.
        multi_prompt: draw one of a task's prompts each time; else its first.
        augment: None for none.
        seed: of all that is drawn.
        cache: where features are kept; None to compute them each time.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        weights: Sequence[float],
        front_end: FrontEnd,
        prompts: PromptConfig,
        tokenizer: Tokenizer,
        *,
        multi_prompt: bool,
        augment: Augmentation | None,
        seed: int,
        cache: FeatureCache | None = None,
    ) -> None:
        self.entries = list(entries)
        self.weights = list(weights)
        self.lengths = [sum(soundfile.info(path).duration for path in e.recordings) for e in entries]
        self._front_end = front_end
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._multi_prompt = multi_prompt
        self._augment = augment
        self._noises = noise_files(augment) if augment else []
        self._seed = seed
        self._cache = cache

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        """The entry of an index; with (index, draw), another augmentation each time the entry comes round."""
        index, draw = key if isinstance(key, tuple) else (key, 0)
        entry = self.entries[index]
        rng = np.random.default_rng([self._seed, index, draw])
        features = self._cache.read(entry) if self._cache else self._features(entry, rng)
        if self._augment and isinstance(features, Features):
            features = mask_features(features, self._augment, rng)
        prompt = self._prompt(entry, random.Random(int(rng.integers(2**32))))
        target = self._tokenizer.encode(entry.text + self._prompts.end_symbol)
        transcript = entry.text if entry.task == "asr" and entry.text != self._prompts.nothing else ""
        return Example(features, prompt_ids(self._prompts, self._tokenizer, prompt), target, transcript, entry)

    def _features(self, entry: Entry, rng: np.random.Generator) -> Features:
        audio = load_recording(entry, self._front_end.audio)
        if self._augment:
            audio = augment_audio(audio, self._augment, rng, self._noises, self._front_end.audio.max_s, entry.task)
        return self._front_end.features(audio)

    def _prompt(self, entry: Entry, rng: random.Random) -> str:
        text = task_prompt(self._prompts, entry.task, rng if self._multi_prompt else None)
        return text.replace("{}", entry.question)


def load_entries(
    sets: Sequence[DataSet], data: DataConfig, prompts: PromptConfig, audio: AudioConfig
) -> tuple[list[Entry], list[float], list[Problem]]:
    """Usable entries of several data sets, the weight of each, and the unusable ones with their reason.

    Raises:
        CheckpointError: there are unusable entries and `on_broken` is "stop", or no usable ones.
    """
    entries: list[Entry] = []
    weights: list[float] = []
    problems: list[Problem] = []
    for data_set in sets:
        listed, broken = read_annotation(data_set.annotation, data_set.prefix, data.lenient)
        problems += [problem for problem in broken if problem not in problems]  # one file may be listed twice
        wanted = [entry for entry in listed if data_set.tasks is None or entry.task in data_set.tasks]
        if listed and not wanted:
            tasks = ", ".join(sorted({entry.task for entry in listed}))
            raise CheckpointError(f"{data_set.annotation} has no entry of {data_set.tasks}; its tasks are {tasks}")
        usable, unusable = part_usable(wanted, prompts, audio)
        entries += usable
        weights += [data_set.weight] * len(usable)
        problems += unusable
    if problems and data.on_broken == "stop":
        shown = "\n".join(map(str, problems[:20]))
        raise CheckpointError(f"{len(problems)} entries cannot be used (data.on_broken=skip goes on without):\n{shown}")
    if not entries:
        raise CheckpointError(f"no usable entry in {[data_set.annotation for data_set in sets]}")
    return entries, weights, problems


class BucketSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of entries of similar length, drawn by weight; the same seed gives the same batches.

    A round has every entry of the highest weight once, the others by chance: with equal weights, all of them.
    """

    def __init__(
        self, lengths: Sequence[float], weights: Sequence[float], batch_size: int, batches: int, seed: int
    ) -> None:
        self._lengths = np.asarray(lengths)
        self._weights = np.asarray(weights, np.float64)
        self._batch_size = batch_size
        self._batches = batches
        self._seed = seed

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng(self._seed)
        made, draw = 0, 0
        while made < self._batches:
            order = self._round(rng)
            for start in rng.permutation(np.arange(0, len(order), self._batch_size)):
                if made == self._batches:
                    return
                yield [(int(index), draw) for index in order[start : start + self._batch_size]]
                made += 1
            draw += 1

    def _round(self, rng: np.random.Generator) -> np.ndarray:
        """Entries of one round, neighbours alike in length; those of less than the highest weight come by chance."""
        relative = self._weights / self._weights.max()
        chosen = np.flatnonzero(rng.random(len(relative)) < relative)
        noise = rng.uniform(0.95, 1.05, len(chosen))  # other neighbours every round
        return chosen[np.argsort(self._lengths[chosen] * noise, kind="stable")]


@dataclass(frozen=True)
class Batch:
    """Examples whose features are padded to one length."""

    features: FeatureBatch | StateBatch
    prompts: list[PromptIds]
    targets: list[list[int]]
    transcripts: list[str]
    entries: list[Entry]


def _collate(features: Sequence[Features | States]) -> FeatureBatch | StateBatch:
    states = [item for item in features if isinstance(item, States)]
    return collate_states(states) if states else collate([item for item in features if isinstance(item, Features)])


def make_batch(examples: Sequence[Example]) -> Batch:
    """Pad and stack."""
    return Batch(
        _collate([example.features for example in examples]),
        [example.prompt for example in examples],
        [example.target for example in examples],
        [example.transcript for example in examples],
        [example.entry for example in examples],
    )


def collate_examples(examples: Sequence[Example]) -> dict[str, object]:
    """What the trainer hands to the model, and the labels it counts to average over accumulated batches."""
    labels = pad_labels([torch.tensor(example.target) for example in examples])
    return {"batch": make_batch(examples), "labels": labels, "shift_labels": labels}
