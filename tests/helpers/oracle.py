"""Searches written as loops that call the decoder themselves: what the generators of `runtime.search` must equal.

They know nothing of rounds, and each kind is a function of its own.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.beam_search import top_k
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.decoder import Chunk, Decoder, step
from salmonrun.runtime.logits import log_softmax, process, sample
from salmonrun.runtime.search import FinishReason, StopRules

S = TypeVar("S")

_NEVER = np.float32(-1e9)


def decode_one_by_one(
    decoder: Decoder[S],
    slot: S,
    logits: F32,
    config: GenerationConfig,
    stop: StopRules,
    cancelled: Callable[[], bool],
    said: Sequence[int] = (),
) -> Generator[int, None, FinishReason]:
    """Yield tokens, greedily or sampled, from a prefilled slot and its logits [V]; returns why it ended.

    `said` is the beginning of the answer that the slot already has.
    """
    rng = np.random.default_rng(config.seed)
    stop_ids = sorted(stop.token_ids)
    tokens: list[int] = list(said)
    while not cancelled():
        scores = process(logits, tokens, config, stop_ids)
        tokens.append(sample(scores, config, rng) if config.do_sample else int(np.argmax(scores)))
        yield tokens[-1]
        if stop.reached(tokens):
            return "stop"
        if len(tokens) == config.max_new_tokens:
            return "length"
        if cancelled():  # while the caller had the token
            break
        logits = step(decoder, [slot], [tokens[-1]])[0]
    return "cancelled"


def decode_batch(
    decoder: Decoder[S],
    slots: Sequence[S],
    logits: Sequence[F32],
    config: GenerationConfig,
    stop: StopRules,
    cancelled: Callable[[], bool],
) -> list[tuple[list[int], FinishReason]]:
    """Greedy answers of B prefilled slots, of any lengths, and their logits B x [V]: all take a step together.

    Each is what `decode_one_by_one` yields for its slot alone.
    """
    stop_ids = sorted(stop.token_ids)
    answers: list[list[int]] = [[] for _ in slots]
    reasons: list[FinishReason] = ["cancelled"] * len(slots)
    running = list(range(len(slots)))
    while running and not cancelled():
        for i, scores in zip(running, logits, strict=True):
            answers[i].append(int(np.argmax(process(scores, answers[i], config, stop_ids))))
            if stop.reached(answers[i]):
                reasons[i] = "stop"
            elif len(answers[i]) == config.max_new_tokens:
                reasons[i] = "length"
        running = [i for i in running if reasons[i] == "cancelled"]
        if running:
            logits = list(step(decoder, [slots[i] for i in running], [answers[i][-1] for i in running]))
    return list(zip(answers, reasons, strict=True))


def decode_drafted(
    decoder: Decoder[S],
    slot: S,
    context: Sequence[int],
    said: Sequence[int],
    draft: Sequence[int],
    config: GenerationConfig,
    stop: StopRules,
    cancelled: Callable[[], bool],
) -> tuple[list[int], FinishReason]:
    """The greedy answer behind the tokens `context`, given that it begins with `said`; why it ended.

    `draft` is a guess of what follows: one pass verifies it, and decoding goes on where it is wrong. The answer is that
    of decoding one by one, and so is what the slot holds in the end, but for rounding.
    """
    if len(said) >= config.max_new_tokens:
        return list(said), "length"
    start = decoder.length(slot) + len(context) + len(said)
    rows = decoder.forward([Chunk(slot, [*context, *said, *draft], wanted=1 + len(draft))])[0]
    stop_ids = sorted(stop.token_ids)
    tokens = list(said)
    for guess, logits in zip([*draft, None], rows, strict=True):
        tokens.append(int(np.argmax(process(logits, tokens, config, stop_ids))))
        if tokens[-1] != guess or stop.reached(tokens) or len(tokens) == config.max_new_tokens:
            break
    decoder.truncate(slot, start + len(tokens) - len(said) - 1)
    if stop.reached(tokens):
        return tokens, "stop"
    if len(tokens) == config.max_new_tokens:
        return tokens, "length"
    if cancelled():
        return tokens, "cancelled"
    search = decode_one_by_one(decoder, slot, step(decoder, [slot], tokens[-1:])[0], config, stop, cancelled, tokens)
    while True:
        try:
            tokens.append(next(search))
        except StopIteration as end:
            return tokens, end.value


@dataclass
class _Beams:
    """Running hypotheses and finished ones, best first."""

    tokens: list[list[int]]
    scores: F32  # [num_beams] sums of log probabilities
    finished: list[list[int]]
    finished_scores: F32  # [num_beams] length-normalised
    is_finished: npt.NDArray[np.bool_]  # [num_beams] whether an entry of `finished` is one


def beam_search(
    decoder: Decoder[S],
    slots: Sequence[S],
    logits: F32,
    config: GenerationConfig,
    stop: StopRules,
    cancelled: Callable[[], bool],
) -> tuple[list[int], FinishReason]:
    """The best hypothesis from num_beams slots, of which the first is prefilled, and its logits [V].

    Ties go to the earlier beam, then to the smaller token id.
    """
    count = config.num_beams
    prompt = decoder.length(slots[0])
    for slot in slots[1:count]:
        decoder.fork(slots[0], slot, prompt)
    slot_of = list(range(count))  # beam -> index in slots
    beams = _first_beams(count)
    scores = np.repeat(log_softmax(logits)[None], count, axis=0)
    while not cancelled():
        parents, ended = _advance(beams, scores, config, stop)
        done = beams.is_finished.all() and config.early_stopping is True
        if ended or done or not _improvable(beams, config):
            best = beams.finished[0]  # empty if every continuation was banned
            return best, "length" if best and not stop.reached(best) else "stop"
        slot_of = _follow_parents(decoder, slots, slot_of, parents, prompt + len(beams.tokens[0]) - 1)
        raw = step(decoder, [slots[i] for i in slot_of], [tokens[-1] for tokens in beams.tokens])
        scores = log_softmax(raw)
    return (beams.finished[0] if beams.is_finished[0] else beams.tokens[0]), "cancelled"


def _first_beams(count: int) -> _Beams:
    scores = np.full(count, _NEVER)
    scores[0] = 0  # all beams are alike: only the first may branch
    return _Beams([[] for _ in range(count)], scores, [[] for _ in range(count)], np.full(count, _NEVER), _none(count))


def _none(count: int) -> npt.NDArray[np.bool_]:
    return np.zeros(count, np.bool_)


def _advance(beams: _Beams, log_probs: F32, config: GenerationConfig, stop: StopRules) -> tuple[list[int], bool]:
    """Extend every beam by one token. Returns the parent of each new beam, and whether all candidates are complete."""
    count, vocab = log_probs.shape
    stop_ids = sorted(stop.token_ids)
    rows = [process(row, tokens, config, stop_ids) for row, tokens in zip(log_probs, beams.tokens, strict=True)]
    totals = (np.stack(rows) + beams.scores[:, None]).ravel()
    # Enough candidates that count of them are left even if every beam could end in every way.
    chosen = top_k(totals, max(2, 1 + len(stop_ids)) * count)
    scores = totals[chosen]
    candidates = [[*beams.tokens[i // vocab], int(i % vocab)] for i in chosen]
    ends = np.array([len(tokens) == config.max_new_tokens or stop.reached(tokens) for tokens in candidates])
    running = top_k(scores + np.where(ends, _NEVER, np.float32(0)), count)
    _keep_finished(beams, candidates, scores, ends, config)
    beams.tokens = [candidates[i] for i in running]
    beams.scores = (scores + np.where(ends, _NEVER, np.float32(0)))[running]
    return [int(chosen[i] // vocab) for i in running], bool(ends.all())


def _keep_finished(
    beams: _Beams, candidates: list[list[int]], scores: F32, ends: npt.NDArray[np.bool_], config: GenerationConfig
) -> None:
    """Merge complete candidates, of the best num_beams only, into the finished hypotheses."""
    count = len(beams.finished)
    just_finished = ends & (np.arange(len(ends)) < count)
    normalised = (scores / np.float32(len(candidates[0]) ** config.length_penalty)).astype(np.float32)
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
    length = config.max_new_tokens if longest else len(beams.tokens[0])
    best_possible = beams.scores[0] / np.float32(length**config.length_penalty)
    return bool(best_possible > beams.finished_scores.min())


def _follow_parents(
    decoder: Decoder[S], slots: Sequence[S], slot_of: list[int], parents: list[int], length: int
) -> list[int]:
    """Give every new beam a slot with its parent's content.

    A parent's first child keeps its slot; further children get copies in the slots of beams that had no child.
    """
    free = [slot_of[beam] for beam in range(len(slot_of)) if beam not in parents]
    assigned: list[int] = []
    for parent in parents:
        index = slot_of[parent]
        if index in assigned:
            target = free.pop()
            decoder.fork(slots[index], slots[target], length)
            index = target
        assigned.append(index)
    return assigned


def collect(search: Generator[int, None, FinishReason], said: Sequence[int] = ()) -> tuple[list[int], FinishReason]:
    """All tokens of a search, and why it ended."""
    tokens = list(said)
    while True:
        try:
            tokens.append(next(search))
        except StopIteration as end:
            return tokens, end.value
