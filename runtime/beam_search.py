"""Beam search, with the semantics of transformers' `generate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.logits import log_softmax, process
from salmonrun.runtime.search import Hypothesis, Need, Search, StopRules, end_reason

S = TypeVar("S")

# What transformers adds to scores that must not be chosen. It is finite, and so orders candidates when all are such.
_NEVER = np.float32(-1e9)


@dataclass(frozen=True)
class _Path:
    """Tokens of a hypothesis, and their log probabilities before penalties and bans."""

    tokens: list[int]
    logprobs: list[float]

    def extended(self, token_id: int, logprob: float) -> "_Path":
        """One token longer."""
        return _Path([*self.tokens, token_id], [*self.logprobs, logprob])


_EMPTY = _Path([], [])


@dataclass
class _Beams:
    """Running hypotheses and finished ones, best first."""

    running: list[_Path]
    scores: F32  # [num_beams] sums of log probabilities
    finished: list[_Path]
    finished_scores: F32  # [num_beams] length-normalised
    is_finished: npt.NDArray[np.bool_]  # [num_beams] whether an entry of `finished` is one


def beam_search(
    prompt: Chunk[S], slots: Sequence[S], start: int, config: GenerationConfig, stop: StopRules
) -> Search[S]:
    """The best hypothesis of num_beams. Ties go to the earlier beam, then to the smaller token id.

    Args:
        prompt: for the first slot; its last position predicts the first token.
        slots: one for each beam.
        start: positions of the slot in front of the answer.
        config: how hypotheses are chosen.
        stop: when one is complete.
    """
    count = config.num_beams
    logits = yield Need([prompt])
    if logits is None:
        return Hypothesis([], "cancelled", [])
    beams, slot_of = _first_beams(count), [0] * count  # beam -> index of its slot: all begin with the prompt
    scores = np.repeat(log_softmax(logits[0][-1])[None], count, axis=0)
    while True:
        parents, ended = _advance(beams, scores, config, stop)
        done = beams.is_finished.all() and config.early_stopping is True
        if ended or done or not _improvable(beams, config):
            best = beams.finished[0]  # empty if every continuation was banned
            reason = end_reason(best.tokens, config, stop) if best.tokens else None
            return Hypothesis(best.tokens, reason or "stop", best.logprobs)
        sources = [slot_of[parent] for parent in parents]
        slot_of = _assign_slots(sources)
        length = start + len(beams.running[0].tokens) - 1
        logits = yield Need(
            [
                Chunk(slots[slot], path.tokens[-1:], keep=length, source=None if slot == source else slots[source])
                for slot, source, path in zip(slot_of, sources, beams.running, strict=True)
            ]
        )
        if logits is None:
            best = beams.finished[0] if beams.is_finished[0] else beams.running[0]
            return Hypothesis(best.tokens, "cancelled", best.logprobs)
        scores = log_softmax(np.concatenate(logits))


def _first_beams(count: int) -> _Beams:
    scores = np.full(count, _NEVER)
    scores[0] = 0  # all beams are alike: only the first may branch
    return _Beams([_EMPTY] * count, scores, [_EMPTY] * count, np.full(count, _NEVER), _none(count))


def _none(count: int) -> npt.NDArray[np.bool_]:
    return np.zeros(count, np.bool_)


def _advance(beams: _Beams, log_probs: F32, config: GenerationConfig, stop: StopRules) -> tuple[list[int], bool]:
    """Extend every beam by one token. Returns the parent of each new beam, and whether all candidates are complete."""
    count, vocab = log_probs.shape
    stop_ids = sorted(stop.token_ids)
    extended = zip(log_probs, beams.running, strict=True)
    rows = [process(row, path.tokens, config, stop_ids, stop.nothing_id) for row, path in extended]
    totals = (np.stack(rows) + beams.scores[:, None]).ravel()
    # Enough candidates that count of them are left even if every beam could end in every way.
    chosen = top_k(totals, max(2, 1 + len(stop_ids)) * count)
    scores = totals[chosen]
    candidates = [beams.running[i // vocab].extended(int(i % vocab), float(log_probs.flat[i])) for i in chosen]
    ends = np.array([end_reason(path.tokens, config, stop) is not None for path in candidates])
    running = top_k(scores + np.where(ends, _NEVER, np.float32(0)), count)
    _keep_finished(beams, candidates, scores, ends, config)
    beams.running = [candidates[i] for i in running]
    beams.scores = (scores + np.where(ends, _NEVER, np.float32(0)))[running]
    return [int(chosen[i] // vocab) for i in running], bool(ends.all())


def _keep_finished(
    beams: _Beams, candidates: list[_Path], scores: F32, ends: npt.NDArray[np.bool_], config: GenerationConfig
) -> None:
    """Merge complete candidates, of the best num_beams only, into the finished hypotheses."""
    count = len(beams.finished)
    just_finished = ends & (np.arange(len(ends)) < count)
    normalised = (scores / np.float32(len(candidates[0].tokens) ** config.length_penalty)).astype(np.float32)
    normalised = normalised + np.where(just_finished, np.float32(0), _NEVER)
    merged = np.concatenate([beams.finished_scores, normalised])
    best = top_k(merged, count)
    everything = [*beams.finished, *candidates]
    beams.finished = [everything[i] for i in best]
    beams.finished_scores = merged[best]
    beams.is_finished = np.concatenate([beams.is_finished, just_finished])[best]


def _improvable(beams: _Beams, config: GenerationConfig) -> bool:
    """Whether the best running hypothesis could still beat the worst finished one."""
    longest = config.early_stopping == "never" and config.length_penalty > 0
    length = config.max_new_tokens if longest else len(beams.running[0].tokens)
    best_possible = beams.scores[0] / np.float32(length**config.length_penalty)
    return bool(best_possible > beams.finished_scores.min())


def _assign_slots(sources: list[int]) -> list[int]:
    """Beam -> index of its slot, given the index of its parent's.

    A parent's first child keeps its slot; further children get copies in slots that no beam goes on from.
    """
    free = [index for index in range(len(sources)) if index not in sources]
    assigned: list[int] = []
    for source in sources:
        assigned.append(free.pop() if source in assigned else source)
    return assigned


def top_k(values: F32, count: int) -> npt.NDArray[np.intp]:
    """Indices of the largest values, descending; the smaller index first among equals."""
    count = min(count, len(values))
    if count < len(values):
        threshold = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(values >= threshold)
    else:
        candidates = np.arange(len(values))
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]
