"""The user's recordings with their answers, and what a model without some layers makes of them."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.runtime.prompt import PromptIds, choose_prompt, prompt_ids
from salmonrun.training.checkpoint import load
from salmonrun.training.data.annotation import Entry, part_usable, read_annotation
from salmonrun.training.data.cache import FeatureCache
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.model.features import FeatureBatch, Features, StateBatch, States, collate, collate_states
from salmonrun.training.model.labels import summed_loss
from salmonrun.training.model.salmonn import SalmonnModel
from salmonrun.training.pruning.layers import Gone, Part, without

ENCODERS: tuple[Part, ...] = ("whisper", "audio_encoder")


def read_calibration(annotation: str | Path, model: SalmonnModel, limit: int | None = None) -> list[Entry]:
    """The entries of an annotation, the first `limit` of them.

    Raises:
        CheckpointError: an entry cannot be used, or there is none.
        ConfigError: `limit` is less than 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1")
    entries, problems = read_annotation(annotation)
    usable, unusable = part_usable(entries[:limit], model.prompts, model.config.audio)
    if problems or unusable:
        raise CheckpointError("\n".join(map(str, [*problems, *unusable][:20])))
    if not usable:
        raise CheckpointError(f"{annotation} has no entries; expected recordings with their answers")
    return usable


def load_measured(checkpoint: str | Path) -> SalmonnModel:
    """A checkpoint that has been opened and verified, on a GPU where there is one."""
    return load(checkpoint, verify=False).to("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class AnswerLoss:
    """Of the answer to one recording."""

    nats: float  # sum of the cross-entropies of its tokens
    tokens: int


@dataclass(frozen=True)
class Score:
    """Of all answers, as the model gives them with a teacher's hand."""

    loss: float  # cross-entropy per token: what fine-tuning minimises
    perplexity: float  # of an answer, averaged over the answers: a short one counts as much as a long one


def score(losses: Sequence[AnswerLoss]) -> Score:
    """Loss and perplexity."""
    total, tokens = sum(one.nats for one in losses), sum(one.tokens for one in losses)
    return Score(total / tokens, sum(math.exp(one.nats / one.tokens) for one in losses) / len(losses))


class Calibration:
    """Recordings whose spectrograms and encoder states are kept: a measurement of the LLM runs no encoder.

    Args:
        model: the whole model; it is left as it is, but its weights are frozen.
        entries: that can be used.
        folder: where features are kept; those of a run that was cut are found there again.
        progress: show bars, on a terminal.
    """

    def __init__(self, model: SalmonnModel, entries: Sequence[Entry], folder: Path, progress: bool = False) -> None:
        self.progress = progress and sys.stderr.isatty()
        self.model = model.requires_grad_(False).eval()
        self.entries = list(entries)
        self._folder = folder
        self._spectrograms = FeatureCache(folder / "spectrograms")
        self._settled: dict[Part, frozenset[int]] = {}
        self._states = self._spectrograms

    def settle(self, gone: Gone) -> None:
        """Compute the features that are not there yet, with the states of encoders without these layers.

        To be called before anything is measured, and again when layers of an encoder are gone for good.
        """
        self._spectrograms.fill(self.entries, self._features, self.progress)
        self._settled = {part: frozenset(numbers) for part, numbers in gone.items() if numbers and part != "llm"}
        names = [f"-{part}-{number}" for part, numbers in self._settled.items() for number in sorted(numbers)]
        self._states = FeatureCache(self._folder / "".join(["states", *names]))
        with without(self.model, gone):
            self._states.fill(self.entries, self._encode, self.progress)

    def _features(self, entry: Entry) -> Features:
        return self.model.features(load_recording(entry, self.model.config.audio))

    @torch.no_grad()
    def _encode(self, entry: Entry) -> States:
        states = self.model.encode_states(self._batch(entry))
        return States(states.speech[0], None if states.audio is None else states.audio[0])

    def _batch(self, entry: Entry) -> FeatureBatch:
        features = self._spectrograms.read(entry)
        assert isinstance(features, Features)
        return collate([features]).to(self.model.device)

    @torch.no_grad()
    def losses(self, gone: Gone, done: Callable[[], object] = lambda: None) -> list[AnswerLoss]:
        """Loss of each answer by the model without these layers."""
        found = []
        with without(self.model, gone):
            for entry in self.entries:
                logits, wanted, tokens = self.logits(entry, gone)
                found.append(AnswerLoss(summed_loss(logits, wanted).item(), tokens))
                done()
        return found

    def logits(self, entry: Entry, gone: Gone, run: Part | None = None) -> tuple[Tensor, Tensor, int]:
        """Logits [N, vocab] for the answer's tokens, these [N], and how many there are. The model is `without` them.

        Args:
            entry: whose answer.
            gone: what the model goes without: an encoder that is as it was is not run.
            run: an encoder that is run all the same, to look into it.
        """
        prompt, target = self.prompt(entry), self.target(entry)
        states = self._encoder_states(entry, gone, run)
        return *self.model.answer_logits(self.model.fuse(states), [prompt], [target]), len(target)

    def log_mel(self, entry: Entry) -> Tensor:
        """What Whisper hears of a recording: [1, n_mels, 2 T]."""
        return self._features(entry).log_mel[None]

    def prompt(self, entry: Entry) -> PromptIds:
        """What the LLM is asked, by the first prompt of the task."""
        text = choose_prompt(self.model.prompts, entry.task, None, entry.question or None)
        return prompt_ids(self.model.prompts, self.model.tokenizer, text)

    def target(self, entry: Entry) -> list[int]:
        """The tokens of the answer, the end symbol's with them."""
        return self.model.tokenizer.encode(entry.text + self.model.prompts.end_symbol)

    def _encoder_states(self, entry: Entry, gone: Gone, run: Part | None) -> StateBatch:
        changed = [part for part in ENCODERS if part == run or self._differs(part, gone)]
        if len(changed) == len(ENCODERS):
            return self.model.encode_states(self._batch(entry))
        kept = self._states.read(entry)
        assert isinstance(kept, States)
        states = collate_states([kept]).to(self.model.device)
        return self._replaced(states, self._batch(entry), changed[0]) if changed else states

    def _differs(self, part: Part, gone: Gone) -> bool:
        return frozenset(gone.get(part, ())) != self._settled.get(part, frozenset())

    def _replaced(self, states: StateBatch, batch: FeatureBatch, part: Part) -> StateBatch:
        """The kept states, but for those of one encoder."""
        if part == "whisper":
            return replace(states, speech=self.model.whisper(batch.log_mel, batch.frames))
        assert self.model.audio_encoder is not None, "there are layers of it"
        return replace(states, audio=self.model.audio_encoder(batch.fbank, batch.fbank_frames))
