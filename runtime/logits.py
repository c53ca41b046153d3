"""Logits processors: pure functions, in the order and with the semantics of transformers."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.errors import ConfigError

F32 = npt.NDArray[np.float32]


def process(
    scores: F32,
    generated: Sequence[int],
    config: GenerationConfig,
    stop_ids: Sequence[int],
    nothing_id: int | None = None,
) -> F32:
    """Apply the penalties and bans of `config` to the scores [V] of the next token; returns a new array if changed.

    Args:
        scores: logits, or log probabilities.
        generated: the tokens of the answer so far.
        config: what is applied.
        stop_ids: what ends an answer.
        nothing_id: with which an answer begins that there is nothing to be transcribed; None: this model has none.
    """
    if config.repetition_penalty != 1.0 and generated:
        scores = penalize_repetition(scores, generated, config.repetition_penalty)
    if config.no_repeat_ngram_size:
        scores = ban_repeated_ngrams(scores, generated, config.no_repeat_ngram_size)
    if len(generated) < config.min_new_tokens and len(stop_ids):
        scores = scores.copy()
        scores[list(stop_ids)] = -np.inf
    if nothing_id is not None and not generated:
        scores = ban_what_is_unsure(scores, nothing_id, config.nothing_threshold)
    return scores


def ban_what_is_unsure(scores: F32, token_id: int, threshold: float) -> F32:
    """A token of a lower probability gets -inf."""
    if np.exp(log_probability(scores, token_id)) >= threshold:
        return scores
    scores = scores.copy()
    scores[token_id] = -np.inf
    return scores


def penalize_repetition(scores: F32, generated: Sequence[int], penalty: float) -> F32:
    """Scores of tokens already generated are divided by `penalty` if positive, multiplied if negative (CTRL)."""
    seen = np.unique(np.asarray(generated))
    scores = scores.copy()
    scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return scores


def ban_repeated_ngrams(scores: F32, generated: Sequence[int], size: int) -> F32:
    """Tokens that would complete an n-gram of `size` generated before get -inf."""
    if len(generated) + 1 < size:
        return scores
    ids = list(generated)
    tail = ids[len(ids) - size + 1 :]
    banned = [ids[i + size - 1] for i in range(len(ids) - size + 1) if ids[i : i + size - 1] == tail]
    if banned:
        scores = scores.copy()
        scores[banned] = -np.inf
    return scores


def sample(scores: F32, config: GenerationConfig, rng: np.random.Generator) -> int:
    """Draw a token from scores [V] after temperature, top_k and top_p.

    Raises:
        ConfigError: every token is banned.
    """
    if not np.isfinite(scores).any():
        raise ConfigError("no token is left to choose: no_repeat_ngram_size and min_new_tokens ban all of them")
    probabilities = sampling_distribution(scores, config)
    return int(rng.choice(len(probabilities), p=probabilities))


def sampling_distribution(scores: F32, config: GenerationConfig) -> npt.NDArray[np.float64]:
    """Probabilities [V] after temperature, top_k and top_p, in this order."""
    scores = scores / np.float32(config.temperature)
    if config.top_k:
        threshold = np.sort(scores)[-min(config.top_k, len(scores))]
        scores = np.where(scores < threshold, -np.inf, scores)
    if config.top_p < 1.0:
        order = np.argsort(scores, kind="stable")  # ascending, as transformers sorts
        drop = np.cumsum(softmax(scores[order])) <= 1 - config.top_p
        drop[-1] = False
        scores = scores.copy()
        scores[order[drop]] = -np.inf
    return softmax(scores)


def softmax(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Probabilities of scores [V]."""
    exponentials = np.exp(scores.astype(np.float64) - scores.max())
    return np.asarray(exponentials / exponentials.sum())


def log_probability(logits: F32, token_id: int) -> float:
    """The log probability of a token by logits [V], in float32."""
    largest = logits.max()
    return float(logits[token_id] - largest - np.log(np.exp(logits - largest).sum()))


def log_softmax(scores: F32) -> F32:
    """Log probabilities along the last axis, in float32."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
