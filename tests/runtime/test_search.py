"""Search against transformers' `generate`, token for token, and on a fake decoder."""

import itertools
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers
from torch import nn
from transformers.generation import StopStringCriteria

from runtime.answer import Answer, answer
from runtime.config import GenerationConfig
from runtime.decoder import F32, Decoder
from runtime.kv_cache import Slot
from runtime.logits import (
    log_softmax,
    sample,
    sampling_distribution,
)
from runtime.search import FinishReason, StopRules, beam_search, decode_one_by_one, top_k
from runtime.tokenizer import Tokenizer
from tests.fakes import FakeDecoder, random_logits, scripted

PROMPT = 5  # positions of the prompts of torch models

pytestmark = pytest.mark.filterwarnings("ignore:Passing .* with `inputs_embeds`:UserWarning")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for their threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Head(nn.Linear):
    """An output layer that makes some tokens likelier, and can have whole numbers for logits: then many tokens tie."""

    scale = 1.0
    whole = False

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().forward(hidden) * self.scale
        return logits.round() if self.whole else logits


class TorchDecoder:
    """A transformers model behind the Decoder protocol; every step computes the whole sequences again."""

    max_length = 128

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def embed(self, token_ids: Sequence[int]) -> F32:
        return self._model.get_input_embeddings()(torch.tensor(token_ids)).detach().numpy()

    @contextmanager
    def open(self, count: int, capacity: int) -> Iterator[list[list[F32]]]:
        yield [[] for _ in range(count)]

    def length(self, slot: list[F32]) -> int:
        return len(slot)

    def prefill(self, slot: list[F32], inputs_embeds: F32) -> F32:
        slot.extend(inputs_embeds)
        return self._logits([slot])[0, -1]

    def step(self, slots: Sequence[list[F32]], token_ids: Sequence[int]) -> F32:
        for slot, embedding in zip(slots, self.embed(token_ids), strict=True):
            slot.append(embedding)
        return self._logits(slots)[:, -1]

    def verify(self, slot: list[F32], token_ids: Sequence[int], last: int | None = None) -> F32:
        slot.extend(self.embed(token_ids))
        return self._logits([slot])[0, -(last or len(token_ids)) :]

    def truncate(self, slot: list[F32], length: int) -> None:
        del slot[length:]

    def fork(self, source: list[F32], target: list[F32], length: int) -> None:
        target[:] = source[:length]

    def _logits(self, slots: Sequence[list[F32]]) -> F32:
        with torch.no_grad():
            return self._model(inputs_embeds=torch.from_numpy(np.array(slots))).logits.numpy()


def tiny_llama(
    seed: int, vocab_size: int, likely: Sequence[int] = (), scale: float = 1.0, whole: bool = False
) -> nn.Module:
    """Random. Logits have a spread of about 2.3 * `scale`, those of `likely` tokens are up to 6 larger."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    head = Head(32, vocab_size)
    head.weight, head.scale, head.whole = model.lm_head.weight, scale, whole
    with torch.no_grad():
        head.bias.zero_()
        for token in likely:
            head.bias[token] = 6 * torch.rand(())
    model.lm_head = head
    return model


def prompt_embeds(seed: int) -> F32:
    return np.random.default_rng(seed).normal(0, 0.4, (PROMPT, 32)).astype(np.float32)


def our_tokens(
    decoder: Decoder[Any], embeds: F32, config: GenerationConfig, stop: StopRules
) -> tuple[list[int], FinishReason]:
    with decoder.open(config.num_beams, len(embeds) + config.max_new_tokens) as slots:
        logits = decoder.prefill(slots[0], embeds)
        if config.num_beams > 1:
            return beam_search(decoder, slots, logits, config, stop, lambda: False)
        tokens = []
        search = decode_one_by_one(decoder, slots[0], logits, config, stop, lambda: False)
        while True:
            try:
                tokens.append(next(search))
            except StopIteration as end:
                return tokens, end.value


def their_tokens(
    model: nn.Module, embeds: F32, config: GenerationConfig, stop: StopRules, tokenizer: Any = None
) -> list[int]:
    """What transformers generates, without the padding after the end."""
    stop_ids = sorted(stop.token_ids)
    inputs = torch.from_numpy(embeds)[None]
    generated = model.generate(
        inputs_embeds=inputs,
        attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
        do_sample=False,
        max_new_tokens=config.max_new_tokens,
        min_new_tokens=config.min_new_tokens or None,
        num_beams=config.num_beams,
        length_penalty=config.length_penalty,
        early_stopping=config.early_stopping,
        repetition_penalty=config.repetition_penalty,
        no_repeat_ngram_size=config.no_repeat_ngram_size,
        eos_token_id=stop_ids or None,
        pad_token_id=stop_ids[0] if stop_ids else 0,
        **({"stop_strings": list(stop.strings), "tokenizer": tokenizer} if stop.strings else {}),
    )[0].tolist()
    for end in range(1, len(generated) + 1):
        if stop.reached(generated[:end]):
            return generated[:end]
    return generated


def random_case(seed: int, vocab_sizes: tuple[int, ...]) -> tuple[int, GenerationConfig, StopRules]:
    """(vocabulary, settings, stop rules); greedy in one case of four."""
    pick = random.Random(seed)
    vocab_size = pick.choice(vocab_sizes)
    stop_ids = pick.sample(range(vocab_size), pick.choice((0, 1, 2, 3)))
    if stop_ids and pick.random() < 0.3:
        stop_ids[0] = 0
    max_new_tokens = pick.randint(1, 20)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=pick.choice((0, 0, min(4, max_new_tokens))),
        num_beams=pick.choice((1, 2, 3, 4, 5, 6)) if pick.random() < 0.9 else 1,
        length_penalty=pick.choice((-1.0, 0.0, 0.5, 1.0, 2.0)),
        early_stopping=pick.choice((True, False, "never")),
        repetition_penalty=pick.choice((1.0, 1.0, 0.7, 1.3, 1.5)),
        no_repeat_ngram_size=pick.choice((0, 0, 2, 3)),
    )
    return vocab_size, config, StopRules(frozenset(stop_ids))


def check_against_transformers(
    seed: int, vocab_sizes: tuple[int, ...], scale: float = 1.0, whole: bool = False
) -> None:
    vocab_size, config, stop = random_case(seed, vocab_sizes)
    model, embeds = tiny_llama(seed, vocab_size, sorted(stop.token_ids), scale, whole), prompt_embeds(seed)
    tokens, reason = our_tokens(TorchDecoder(model), embeds, config, stop)
    assert tokens == their_tokens(model, embeds, config, stop), (config, stop)
    assert reason == ("stop" if tokens[-1] in stop.token_ids else "length")


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("seed", range(80))
def test_tokens_are_those_of_transformers(seed: int, scale: float) -> None:
    check_against_transformers(seed, (40, 64, 90), scale)


@pytest.fixture
def stable_topk(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.topk leaves the order of ties open; let it be ours: the smaller index first."""

    def topk(values: torch.Tensor, k: int, dim: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
        ordered = torch.sort(values, dim=dim, descending=True, stable=True)
        return ordered.values.narrow(dim, 0, k), ordered.indices.narrow(dim, 0, k)

    monkeypatch.setattr(torch, "topk", topk)


@pytest.mark.usefixtures("stable_topk")
@pytest.mark.parametrize("seed", range(1000, 1060))
def test_vocabularies_small_for_their_beams(seed: int) -> None:
    """The first step then has fewer tokens than candidates, and beams that must not branch do."""
    check_against_transformers(seed, (5, 7, 12))


@pytest.mark.usefixtures("stable_topk")
@pytest.mark.parametrize("scale", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(2000, 2020))
def test_ties_go_to_the_smaller_index(seed: int, scale: float) -> None:
    check_against_transformers(seed, (6, 17, 40), scale, whole=True)


@pytest.mark.usefixtures("stable_topk")
def test_beams_with_every_token_banned_answer_nothing() -> None:
    """Three tokens, none of which may come twice, leave no fourth."""
    config, stop = GenerationConfig(max_new_tokens=4, num_beams=2, no_repeat_ngram_size=1), StopRules(frozenset())
    model = tiny_llama(0, 3)
    assert their_tokens(model, prompt_embeds(0), config, stop) == []
    assert our_tokens(TorchDecoder(model), prompt_embeds(0), config, stop) == ([], "stop")


def test_greedy_ties_go_to_the_smaller_token() -> None:
    decoder, config = TorchDecoder(tiny_llama(0, 40, scale=0.0)), GenerationConfig(max_new_tokens=3)
    tokens, _ = our_tokens(decoder, prompt_embeds(0), config, StopRules(frozenset()))
    assert tokens == [0, 0, 0]


@given(
    st.lists(st.sampled_from([-np.inf, -1e9, -2.0, 0.0, 1.0, 1.5]), min_size=1, max_size=30),
    st.integers(1, 40),
)
def test_top_k_is_a_stable_sort(values: list[float], count: int) -> None:
    array = np.array(values, np.float32)
    assert top_k(array, count).tolist() == np.argsort(-array, kind="stable")[:count].tolist()


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_enough_beams_find_the_best_of_all_sequences(seed: int, length_penalty: float) -> None:
    """As many beams as there are sequences: nothing is pruned, so the answer is the best one there is."""
    vocab_size, length, stop = 3, 3, 2
    decoder = FakeDecoder(random_logits(vocab_size, seed))
    config = GenerationConfig(
        max_new_tokens=length, num_beams=27, length_penalty=length_penalty, early_stopping="never"
    )
    prompt = [1, 2]
    scores = {}
    for sequence in itertools.product(range(vocab_size), repeat=length):
        tokens = sequence[: sequence.index(stop) + 1] if stop in sequence else sequence
        with decoder.open(1, 10) as (slot,):
            rows = [decoder.prefill(slot, decoder.embed(prompt)), *decoder.verify(slot, tokens)]
        total = sum(log_softmax(row)[token] for row, token in zip(rows, tokens, strict=False))
        scores[tokens] = total / len(tokens) ** length_penalty
    tokens, reason = our_tokens(decoder, decoder.embed(prompt), config, StopRules(frozenset({stop})))
    assert tuple(tokens) == max(scores, key=lambda sequence: scores[sequence])
    assert reason == ("stop" if tokens[-1] == stop else "length")


def test_never_stopping_early_with_a_penalty_on_length() -> None:
    """A length penalty below 0 makes the current length the best a running beam can hope for, not the longest one."""
    first, second, stop = 0, 1, 2
    table = {(): [0.9, 0.02, 0.05, 0.03], (first,): [0.02, 0.9, 0.06, 0.02], (first, second): [0.01, 0.01, 0.97, 0.01]}

    def next_logits(history: tuple[int, ...]) -> F32:
        return np.log(np.array(table.get(history[1:], [0.25] * 4), np.float32))

    config = GenerationConfig(max_new_tokens=40, num_beams=2, length_penalty=-1.0, early_stopping="never")
    tokens, _ = our_tokens(FakeDecoder(next_logits), np.ones((1, 1), np.float32), config, StopRules(frozenset({stop})))
    assert tokens == [first, second, stop]  # with 40 for the length, the search ends when [stop] and [0, stop] are full


class WholeCopies(FakeDecoder):
    """Forks every position, shared or not."""

    def fork(self, source: Slot, target: Slot, length: int) -> None:
        source.prefixes, target.prefixes = {}, {}
        super().fork(source, target, length)


@pytest.mark.parametrize("seed", range(20))
def test_beams_copy_their_prompt_once(seed: int) -> None:
    """Later copies are of generated positions only, and change nothing."""
    config = GenerationConfig(max_new_tokens=15, num_beams=2 + seed % 5, early_stopping="never", length_penalty=2.0)
    stop = StopRules(frozenset({0}))
    prompt = np.arange(1, 51, dtype=np.float32)[:, None]
    decoder, whole = FakeDecoder(random_logits(30, seed)), WholeCopies(random_logits(30, seed))
    assert our_tokens(decoder, prompt, config, stop) == our_tokens(whole, prompt, config, stop)
    first, later = decoder.copied[: config.num_beams - 1], decoder.copied[config.num_beams - 1 :]
    assert first == [50] * (config.num_beams - 1)
    assert len(later) >= 3
    assert max(later) < 15
    assert min(whole.copied) >= 50


@pytest.mark.parametrize("kept", [0, 50])
def test_beams_copy_their_prompt_once_after_a_fork(kept: int) -> None:
    """As in Heard.ask: the first slot begins as a fork of the recording's slot, and the question follows."""
    config = GenerationConfig(max_new_tokens=15, num_beams=4, early_stopping="never", length_penalty=2.0)
    decoder = FakeDecoder(random_logits(30, 0))
    with decoder.open(1, 50) as (heard,), decoder.open(4, 100) as slots:
        decoder.prefill(heard, np.ones((50, 1), np.float32))
        decoder.fork(heard, slots[0], kept)
        logits = decoder.prefill(slots[0], np.ones((30, 1), np.float32))
        beam_search(decoder, slots, logits, config, StopRules(frozenset()), lambda: False)
    later = decoder.copied[4:]
    assert later
    assert max(later) < 15


# Sampling


def sampled(config: GenerationConfig) -> list[int]:
    return our_tokens(FakeDecoder(random_logits(30, 0)), np.ones((3, 1), np.float32), config, StopRules(frozenset()))[0]


def test_a_seed_reproduces() -> None:
    config = GenerationConfig(do_sample=True, max_new_tokens=20, seed=7)
    assert sampled(config) == sampled(config)
    assert sampled(config) != sampled(replace(config, seed=8))
    assert sampled(config) != sampled(GenerationConfig(max_new_tokens=20))


def test_samples_follow_the_distribution() -> None:
    config = GenerationConfig(do_sample=True, temperature=1.5, top_k=6)
    scores = np.random.default_rng(0).normal(0, 1, 10).astype(np.float32)
    rng, draws = np.random.default_rng(0), 3000
    counts = np.bincount([sample(scores, config, rng) for _ in range(draws)], minlength=10)
    expected = sampling_distribution(scores, config) * draws
    kept = expected > 0
    assert kept.sum() == 6
    assert counts[~kept].sum() == 0
    chi_square = np.sum(np.square(counts[kept] - expected[kept]) / expected[kept])
    assert chi_square < 20.5  # 5 degrees of freedom: exceeded once in a thousand seeds


# Stop strings

MERGES = [("a", "b"), ("ab", "c"), ("c", "d"), ("abc", "d"), ("b", "a"), ("d", "a"), ("e", "e"), ("g", "h")]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Letters a-h, the bytes of é, € and an emoji, tokens of several letters, and one that ends amid a character."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ((text, _),) = split.pre_tokenize_str("abcdefghé€😀")
    merges = [*MERGES, ("h", text[8])]
    pieces = dict.fromkeys([*text, *(a + b for a, b in merges)])
    tokenizer = FastTokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer(tokenizer_file)


@pytest.fixture(scope="module")
def their_tokenizer(tokenizer_file: Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))


@pytest.mark.parametrize("seed", range(30))
def test_stop_strings_stop_where_transformers_does(
    seed: int, tokenizer: Tokenizer, their_tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    pick = random.Random(seed)
    tokens = [pick.randrange(tokenizer.vocab_size) for _ in range(40)]
    strings = tuple("".join(pick.choice("abcdgh") for _ in range(pick.choice((1, 2, 3, 4)))) for _ in range(2))
    rules = StopRules(frozenset(), strings, tokenizer.decode)
    criteria = StopStringCriteria(their_tokenizer, list(strings))

    def ends(reached: Any) -> int:
        return next((n for n in range(1, 41) if reached(tokens[:n])), 0)

    assert ends(rules.reached) == ends(lambda ids: bool(criteria(torch.tensor([ids]), None)[0])), strings


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("seed", range(10))
def test_generation_with_stop_strings_is_that_of_transformers(
    seed: int, num_beams: int, tokenizer: Tokenizer, their_tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    model, embeds = tiny_llama(seed, tokenizer.vocab_size), prompt_embeds(seed)
    config = GenerationConfig(max_new_tokens=16, num_beams=num_beams, no_repeat_ngram_size=2)
    free, _ = our_tokens(TorchDecoder(model), embeds, config, StopRules(frozenset()))
    letters = "".join(filter(str.isascii, tokenizer.decode(free[4:])))
    stop = StopRules(frozenset(), (letters[:2], letters[3:6]), tokenizer.decode)
    tokens, reason = our_tokens(TorchDecoder(model), embeds, config, stop)
    assert tokens == their_tokens(model, embeds, config, stop, their_tokenizer)
    assert reason == ("stop" if stop.reached(tokens) else "length")


def drained(pieces: Any) -> tuple[list[str], Answer]:
    shown = []
    while True:
        try:
            shown.append(next(pieces))
        except StopIteration as end:
            return shown, end.value


@settings(deadline=None, max_examples=500)
@given(data=st.data())
def test_streamed_text_never_shows_a_part_of_a_stop_string(data: st.DataObject, tokenizer: Tokenizer) -> None:
    ids = st.integers(0, tokenizer.vocab_size - 1)
    few = data.draw(st.lists(ids, min_size=1, max_size=4))  # of few different tokens, so that beginnings repeat
    tokens = data.draw(st.lists(st.sampled_from(few) | ids, min_size=1, max_size=25))
    whole = tokenizer.decode(tokens)
    places = st.integers(0, len(whole))
    inside = st.builds(lambda at, length: whole[at : at + length], places, st.integers(1, 4))
    text = (inside | st.text("abcdhé", min_size=1, max_size=4)).filter(lambda text: text and "\ufffd" not in text)
    strings = data.draw(st.lists(text, max_size=3, unique=True))
    config = GenerationConfig(max_new_tokens=len(tokens), stop_strings=tuple(strings))
    decoder = FakeDecoder(scripted(tokens, tokenizer.vocab_size, prompt=2))
    with decoder.open(1, 2 + len(tokens)) as slots:
        shown, result = drained(answer(decoder, tokenizer, slots, np.ones((2, 1), np.float32), config, ()))
    assert result.token_ids == tokens[: len(result.token_ids)]
    text = tokenizer.decode(result.token_ids)
    assert result.finish_reason == ("stop" if any(string in whole for string in strings) else "length")
    assert result.text == text[: min((text.find(s) for s in strings if s in text), default=len(text))]
    assert "".join(shown) == result.text  # what was shown is never taken back
    assert "" not in shown


def test_beams_are_cut_at_a_stop_string(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("abcdeefgh")
    config = GenerationConfig(max_new_tokens=len(tokens), num_beams=2, stop_strings=("ef",))
    decoder = FakeDecoder(scripted(tokens, tokenizer.vocab_size, prompt=2))
    with decoder.open(2, 20) as slots:
        shown, result = drained(answer(decoder, tokenizer, slots, np.ones((2, 1), np.float32), config, ()))
    assert "".join(shown) == result.text == "abcde"
    assert result.finish_reason == "stop"


# Cancelling


@pytest.mark.parametrize("num_beams", [1, 3])
def test_cancelling_during_a_step_is_the_last_step(num_beams: int, tokenizer: Tokenizer) -> None:
    cancel = threading.Event()
    logits = random_logits(tokenizer.vocab_size, 0)

    def cancelling(history: tuple[int, ...]) -> F32:
        if len(history) == 2 + 4:
            cancel.set()
        return logits(history)

    decoder = FakeDecoder(cancelling)
    config = GenerationConfig(max_new_tokens=30, num_beams=num_beams)
    with decoder.open(num_beams, 40) as slots:
        _, result = drained(answer(decoder, tokenizer, slots, np.ones((2, 1), np.float32), config, (), cancel))
    assert result.finish_reason == "cancelled"
    assert decoder.calls.count("step") == 4
    assert len(result.token_ids) == 4
    assert result.text == tokenizer.decode(result.token_ids)


def test_cancelling_between_tokens_yields_no_further_one() -> None:
    cancel = threading.Event()
    decoder = FakeDecoder(random_logits(30, 0))
    with decoder.open(1, 40) as (slot,):
        logits = decoder.prefill(slot, np.ones((2, 1), np.float32))
        config = GenerationConfig(max_new_tokens=30)
        search = decode_one_by_one(decoder, slot, logits, config, StopRules(frozenset()), cancel.is_set)
        tokens = [next(search), next(search), next(search)]
        steps = decoder.calls.count("step")
        cancel.set()
        assert list(search) == []
    assert len(tokens) == 3
    assert decoder.calls.count("step") <= steps + 1  # "within one step"


@pytest.mark.parametrize("num_beams", [1, 3])
def test_cancelled_before_the_first_token(num_beams: int, tokenizer: Tokenizer) -> None:
    cancel = threading.Event()
    cancel.set()
    decoder = FakeDecoder(random_logits(tokenizer.vocab_size, 0))
    with decoder.open(num_beams, 40) as slots:
        config = GenerationConfig(num_beams=num_beams)
        shown, result = drained(answer(decoder, tokenizer, slots, np.ones((2, 1), np.float32), config, (), cancel))
    assert (shown, result.text, result.token_ids, result.finish_reason) == ([], "", [], "cancelled")
    assert "step" not in decoder.calls
