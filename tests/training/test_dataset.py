"""Entries to examples to batches, and what a loader's worker is sent."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from salmonrun.runtime.audio import load_audio
from salmonrun.training.checkpoint import load
from salmonrun.training.data.annotation import Entry, read_annotation
from salmonrun.training.data.cache import FeatureCache
from salmonrun.training.data.config import Augmentation
from salmonrun.training.data.dataset import Batch, BucketSampler, SpeechDataset, collate_examples
from salmonrun.training.model.features import Features
from salmonrun.training.model.salmonn import SalmonnModel
from tests.helpers.runs import write_noises

TEXTS = ("one", "two three", "four", "five six seven")
AUGMENT = Augmentation(noise_p=1.0, gain_p=1.0, mask_p=1.0)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> SalmonnModel:
    return load(tiny_checkpoint)


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    return read_annotation(write_noises(tmp_path_factory.mktemp("data"), TEXTS))[0]


def dataset(
    model: SalmonnModel,
    entries: list[Entry],
    augment: Augmentation | None = None,
    cache: FeatureCache | None = None,
) -> SpeechDataset:
    weights = [1.0] * len(entries)
    front_end, prompts, tokenizer = model.config.front_end, model.prompts, model.tokenizer
    return SpeechDataset(
        entries, weights, front_end, prompts, tokenizer, multi_prompt=False, augment=augment, seed=0, cache=cache
    )


def test_a_worker_is_sent_no_model(model: SalmonnModel, entries: list[Entry], tmp_path: Path) -> None:
    """With the model in it, these would be megabytes here and gigabytes for a published one."""
    sent = pickle.dumps(dataset(model, entries, AUGMENT, FeatureCache(tmp_path)))
    assert len(sent) < 100_000
    assert len(pickle.dumps(model.whisper.state_dict())) > 2 * len(sent)


def test_a_spawned_worker_makes_the_batches_of_this_process(model: SalmonnModel, entries: list[Entry]) -> None:
    data, keys = dataset(model, entries, AUGMENT), [[(0, 0), (2, 0)], [(1, 1), (3, 1)]]
    loader: DataLoader[Any] = DataLoader(
        data, batch_sampler=keys, collate_fn=collate_examples, num_workers=1, multiprocessing_context="spawn"
    )
    for there, indices in zip(loader, keys, strict=True):
        here = collate_examples([data[key] for key in indices])["batch"]
        batch = there["batch"]
        assert isinstance(batch, Batch)
        assert isinstance(here, Batch)
        assert batch.targets == here.targets
        assert batch.prompts == here.prompts
        for name, value in vars(here.features).items():
            assert torch.equal(getattr(batch.features, name), value), name


def test_what_is_not_to_be_written_down_is_no_transcript(model: SalmonnModel, entries: list[Entry]) -> None:
    """It is answered, and the auxiliary loss on the encoder's characters does not hear of it."""
    prompts = replace(model.prompts, nothing=TEXTS[1])
    data = SpeechDataset(
        entries, [1.0] * 4, model.config.front_end, prompts, model.tokenizer, multi_prompt=False, augment=None, seed=0
    )
    assert [data[index].transcript for index in range(4)] == [TEXTS[0], "", *TEXTS[2:]]
    assert model.tokenizer.decode(data[1].target).startswith(TEXTS[1])


def test_appended_recordings_follow_a_pause(model: SalmonnModel, entries: list[Entry]) -> None:
    first, second = entries[:2]
    joined = replace(first, appended=(second.path,), text="one two three")
    example = dataset(model, [joined])[0]
    pcm = np.concatenate([soundfile.read(first.path)[0], np.zeros(1600), soundfile.read(second.path)[0]])
    expected = model.features(load_audio(pcm.astype(np.float32), 16000))
    assert isinstance(example.features, Features)
    assert torch.equal(example.features.log_mel, expected.log_mel)
    assert model.tokenizer.decode(example.target) == "one two three"


def test_batches_hold_every_entry_once_a_round_and_neighbours_in_length() -> None:
    lengths = np.random.default_rng(0).uniform(1, 10, 60).tolist()
    batches = list(BucketSampler(lengths, [1.0] * 60, 6, 20, seed=1))
    assert len(batches) == 20
    for turn in (0, 1):
        drawn = [index for batch in batches[10 * turn : 10 * turn + 10] for index, draw in batch if draw == turn]
        assert sorted(drawn) == list(range(60))
    spread = [np.ptp([lengths[index] for index, _ in batch]) for batch in batches]
    assert np.mean(spread) < 2.0  # of 9
    assert batches == list(BucketSampler(lengths, [1.0] * 60, 6, 20, seed=1))
    assert batches != list(BucketSampler(lengths, [1.0] * 60, 6, 20, seed=2))


def test_weights_share_the_draws() -> None:
    batches = BucketSampler([1.0] * 200, [1.0] * 100 + [0.25] * 100, 10, 250, seed=0)
    heavy = sum(index < 100 for batch in batches for index, _ in batch)
    assert 0.75 < heavy / 2500 < 0.85
