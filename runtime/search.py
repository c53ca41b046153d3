"""Greedy, sampled, drafted and beam search, with the semantics of transformers' `generate`.

A search is a generator. It yields what it needs of the decoder, and is sent the logits of each chunk, or None when it
is cancelled; it returns its answer. It never calls a decoder: see `runtime/rounds.py` for who does.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.cut_text import cut_text
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.logits import log_probability, process, sample
from salmonrun.runtime.repetition import ends_in_repetition

EndReason = Literal["stop", "length", "repetition"]
FinishReason = EndReason | Literal["cancelled"]
S = TypeVar("S")


@dataclass(frozen=True)
class StopRules:
    """When an answer is complete: at a stop token, or when its text contains a stop string.

    And with which token one begins that there is nothing to be transcribed: None, if the model says no such thing.
    """

    token_ids: frozenset[int]
    strings: tuple[str, ...] = ()
    decode: Callable[[Sequence[int]], str] | None = None
    nothing_id: int | None = None
    cuts: tuple[str, ...] = ()  # in front of the first of which the text of an answer ends

    def reached(self, tokens: Sequence[int]) -> bool:
        """Whether the last of `tokens` ends the answer."""
        if tokens[-1] in self.token_ids:
            return True
        if not self.strings or self.decode is None:
            return False
        text = self.decode(tokens)
        return any(string in text for string in self.strings)

    def without_stop(self, tokens: list[int]) -> list[int]:
        """The tokens of an answer without the stop token that may be its last."""
        return tokens[:-1] if tokens and tokens[-1] in self.token_ids else tokens

    def in_front_of_end(self, tokens: list[int]) -> list[int]:
        """The same, and without those that have a part in a string that ends the text."""
        tokens = self.without_stop(tokens)
        if not self.cuts or self.decode is None:
            return tokens
        text = self.decode(tokens)
        kept = len(cut_text(text, self.cuts))
        while len(text) > kept:
            tokens = tokens[:-1]
            text = self.decode(tokens)
        return tokens


@dataclass(frozen=True, eq=False)
class Need(Generic[S]):
    """What a search needs to go on, and what it knows by now."""

    chunks: Sequence[Chunk[S]]  # each of another slot
    tokens: Sequence[int] = ()  # of the answer, as far as it is certain; it only grows


@dataclass(frozen=True)
class Hypothesis:
    """The answer of a search."""

    tokens: list[int]  # a final stop token included
    finish_reason: FinishReason
    # Of each token, by the model's own logits where it was chosen: before penalties, bans and temperature.
    logprobs: list[float]

    @property
    def score(self) -> float | None:
        """How sure the model is of it: the mean log probability of its tokens; None if it has none."""
        return mean(self.logprobs)

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.logprobs), "every token has been chosen from logits"


def mean(logprobs: Sequence[float]) -> float | None:
    """The score of tokens with these log probabilities; None of no tokens."""
    return sum(logprobs) / len(logprobs) if logprobs else None


Search = Generator[Need[S], Sequence[F32] | None, Hypothesis]


def decode(
    prompt: Chunk[S],
    config: GenerationConfig,
    stop: StopRules,
    tokens: Sequence[int] = (),
    logprobs: Sequence[float] = (),
) -> Search[S]:
    """One token after the other behind a prompt, greedily or sampled.

    Args:
        prompt: whose last position predicts the next token.
        config: how tokens are chosen.
        stop: when the answer is complete.
        tokens: the beginning of the answer, which the prompt ends with.
        logprobs: of these tokens.
    """
    choose = _chooser(config, stop)
    tokens, logprobs, chunk = list(tokens), list(logprobs), prompt
    logits = yield Need([chunk], tokens)
    while logits is not None:
        row = logits[0][-1]
        if chunk.likeliest:
            tokens.append(int(row[0]))
            logprobs.append(float(row[1]))
        else:
            tokens.append(choose(row, tokens))
            logprobs.append(log_probability(row, tokens[-1]))
        if reason := end_reason(tokens, config, stop):
            return Hypothesis(tokens, reason, logprobs)
        chunk = Chunk(prompt.slot, tokens[-1:], likeliest=_takes_likeliest(config, len(tokens)))
        logits = yield Need([chunk], tokens)
    return Hypothesis(tokens, "cancelled", logprobs)


def decode_drafted(
    prompt: Chunk[S],
    start: int,
    tokens: Sequence[int],
    logprobs: Sequence[float],
    draft: Sequence[int],
    config: GenerationConfig,
    stop: StopRules,
) -> Search[S]:
    """The greedy answer, given that it begins with `tokens` and perhaps goes on with `draft`.

    One pass verifies the draft, and decoding goes on where it is wrong: the answer is that of decoding one by one, but
    for rounding.

    Args:
        prompt: ends with `tokens` and `draft`; its last 1 + len(draft) positions are wanted.
        start: positions of the slot in front of the answer.
        tokens: the certain beginning of the answer, shorter than the longest.
        logprobs: of these tokens, as the pass that chose them found them: no logits are computed for them again.
        draft: a guess of what follows.
        config: how tokens are chosen.
        stop: when the answer is complete.
    """
    choose = _chooser(config, stop)
    tokens, logprobs = list(tokens), list(logprobs)
    logits = yield Need([prompt], tokens)
    if logits is None:
        return Hypothesis(tokens, "cancelled", logprobs)
    for guess, row in zip([*draft, None], logits[0], strict=True):
        tokens.append(choose(row, tokens))
        logprobs.append(log_probability(row, tokens[-1]))
        if reason := end_reason(tokens, config, stop):
            return Hypothesis(tokens, reason, logprobs)
        if tokens[-1] != guess:
            break
    following = Chunk(prompt.slot, tokens[-1:], keep=start + len(tokens) - 1)
    return (yield from decode(following, config, stop, tokens, logprobs))


def _chooser(config: GenerationConfig, stop: StopRules) -> Callable[[F32, Sequence[int]], int]:
    """Chooses the next token from logits [V] and the tokens so far."""
    rng = np.random.default_rng(config.seed) if config.do_sample else None  # 0.1 ms, for those who roll dice
    stop_ids = sorted(stop.token_ids)

    def choose(logits: F32, tokens: Sequence[int]) -> int:
        scores = process(logits, tokens, config, stop_ids, stop.nothing_id)
        return sample(scores, config, rng) if rng else int(np.argmax(scores))

    return choose


def _takes_likeliest(config: GenerationConfig, count: int) -> bool:
    """Whether the token behind `count` others is the likeliest in any case: nothing is drawn, banned or penalized."""
    plain = not (config.do_sample or config.no_repeat_ngram_size) and config.repetition_penalty == 1.0
    return plain and count >= max(1, config.min_new_tokens)


def end_reason(tokens: Sequence[int], config: GenerationConfig, stop: StopRules) -> EndReason | None:
    """Why the answer is complete with its last token; None if it is not."""
    if stop.reached(tokens):
        return "stop"
    if len(tokens) == config.max_new_tokens:
        return "length"
    goes_on = not config.stop_repetition or len(tokens) < config.min_new_tokens
    return None if goes_on or not ends_in_repetition(tokens) else "repetition"
