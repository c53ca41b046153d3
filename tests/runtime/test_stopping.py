"""Where an answer ends: stop strings as in transformers, none ever shown, and cancelling within one step."""

import random
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers.generation import StopStringCriteria

from salmonrun.runtime.answer import Answer, answer, choose_search
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.config import GenerationConfig, PromptConfig
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.prompt import PromptIds
from salmonrun.runtime.repetition import ends_in_repetition
from salmonrun.runtime.request import Request
from salmonrun.runtime.rounds import Rounds
from salmonrun.runtime.search import StopRules, decode
from salmonrun.runtime.stopwatch import Stopwatch
from salmonrun.runtime.terms import Terms
from salmonrun.runtime.tokenizer import Tokenizer
from tests.helpers.fakes import FakeDecoder, random_logits, scripted
from tests.helpers.searches import TorchDecoder, our_tokens, prompt_embeds, their_tokens, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore:Passing .* with `inputs_embeds`:UserWarning")


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


def drained(
    decoder: FakeDecoder,
    tokenizer: Tokenizer,
    config: GenerationConfig,
    cancel: threading.Event | None = None,
    nothing: str = "",
) -> tuple[list[str], Answer]:
    """The pieces of the answer to a prompt of two positions, and all of it."""
    request = Request(
        PromptIds((), ()),
        config,
        StopRules(frozenset(), config.stop_strings, tokenizer.decode, cuts=config.stop_strings),
    )
    bundle = SimpleNamespace(manifest=SimpleNamespace(prompt=PromptConfig(nothing=nothing)))
    model: Any = SimpleNamespace(tokenizer=tokenizer, rounds=Rounds(decoder), bundle=bundle)
    shown: list[str] = []
    lease = decoder.open(config.num_beams, 2 + config.max_new_tokens)
    with lease as slots:
        search = choose_search(request, Chunk(slots[0], np.ones((2, 1), np.float32)), slots, 2)
        pieces = answer(model, request, search, Stopwatch(), Terms(cancel=cancel), lease)
        return shown, drained_pieces(pieces, shown)


def drained_pieces(pieces: Any, shown: list[str]) -> Any:
    while True:
        try:
            shown.append(next(pieces))
        except StopIteration as end:
            return end.value


@settings(deadline=None, max_examples=500)
@given(data=st.data())
def test_streamed_text_never_shows_a_part_of_a_stop_string(data: st.DataObject, tokenizer: Tokenizer) -> None:
    ids = st.integers(0, tokenizer.vocab_size - 1)
    few = data.draw(st.lists(ids, min_size=1, max_size=4))  # of few different tokens, so that beginnings repeat
    tokens = data.draw(st.lists(st.sampled_from(few) | ids, min_size=1, max_size=25))
    whole = tokenizer.decode(tokens)
    places = st.integers(0, len(whole))
    inside = st.builds(lambda at, length: whole[at : at + length], places, st.integers(1, 4))
    string = (inside | st.text("abcdhé", min_size=1, max_size=4)).filter(lambda text: text and "\ufffd" not in text)
    strings = data.draw(st.lists(string, max_size=3, unique=True))
    config = GenerationConfig(max_new_tokens=len(tokens), stop_strings=tuple(strings))
    decoder = FakeDecoder(scripted(tokens, tokenizer.vocab_size, prompt=2))
    shown, result = drained(decoder, tokenizer, config)
    assert result.token_ids == tokens[: len(result.token_ids)]
    text = tokenizer.decode(result.token_ids)
    assert result.finish_reason == ("stop" if any(string in whole for string in strings) else "length")
    assert result.text == text[: min((text.find(s) for s in strings if s in text), default=len(text))]
    assert "".join(shown) == result.text  # what was shown is never taken back
    assert "" not in shown


# What a model says where there is nothing to be transcribed


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("(abc)", []),
        ("abcde", ["abcde"]),
        ("abcd", ["abcd"]),
        ("h", ["h"]),
    ],
)
def test_nothing_is_no_text_and_no_piece_of_it_is_shown(
    tokenizer: Tokenizer, num_beams: int, said: str, shown: list[str]
) -> None:
    said = said.replace("(abc)", "gabch")  # as long as it may become "gabch", a text is held back
    tokens = tokenizer.encode(said)
    config = GenerationConfig(max_new_tokens=len(tokens), num_beams=num_beams)
    decoder = FakeDecoder(scripted(tokens, tokenizer.vocab_size, prompt=2))
    pieces, result = drained(decoder, tokenizer, config, nothing="gabch")
    assert result.token_ids == tokens
    assert "".join(pieces) == result.text == "".join(shown)
    assert result.heard_nothing == (said == "gabch")


def test_text_is_held_back_only_while_it_may_be_nothing(tokenizer: Tokenizer) -> None:
    tokens = [token for letter in "gaceeh" for token in tokenizer.encode(letter)]
    config = GenerationConfig(max_new_tokens=len(tokens))
    decoder = FakeDecoder(scripted(tokens, tokenizer.vocab_size, prompt=2))
    pieces, result = drained(decoder, tokenizer, config, nothing="gabch")
    assert pieces == ["gac", "e", "e", "h"]
    assert not result.heard_nothing


def test_nothing_in_front_of_a_stop_string(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("gabchde")
    config = GenerationConfig(max_new_tokens=len(tokens), stop_strings=("de",))
    decoder = FakeDecoder(scripted(tokens, tokenizer.vocab_size, prompt=2))
    pieces, result = drained(decoder, tokenizer, config, nothing="gabch")
    assert (pieces, result.text, result.heard_nothing) == ([], "", True)


# Answers that repeat themselves


def test_a_repetition_ends_the_answer_unless_it_is_told_not_to(tokenizer: Tokenizer) -> None:
    tokens = [*tokenizer.encode("abcd"), *[5, 6, 7] * 20]
    decoder = FakeDecoder(scripted(tokens, tokenizer.vocab_size, prompt=2))
    config = GenerationConfig(max_new_tokens=60)
    _, ended = drained(decoder, tokenizer, config)
    _, whole = drained(decoder, tokenizer, replace(config, stop_repetition=False))
    _, forced = drained(decoder, tokenizer, replace(config, min_new_tokens=50))
    assert (ended.token_ids, ended.finish_reason) == (tokens[: len(tokens) - 60 + 24], "repetition")
    assert (whole.token_ids, whole.finish_reason) == (tokens[:60], "length")
    assert (forced.token_ids, forced.finish_reason) == (tokens[:50], "repetition")


@pytest.mark.parametrize("num_beams", [1, 3])
def test_repetition_ends_where_a_criterion_of_transformers_would(num_beams: int) -> None:
    """A model whose output layer knows two tokens alone, with logits far apart."""

    def repeats(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor([ends_in_repetition(row) for row in input_ids.tolist()])

    for seed in range(4):
        model, embeds = tiny_llama(seed, 6, likely=(1, 2), scale=0.1), prompt_embeds(seed)
        config = GenerationConfig(max_new_tokens=40, num_beams=num_beams)
        tokens, reason = our_tokens(TorchDecoder(model), embeds, config, StopRules(frozenset()))
        theirs = model.generate(
            inputs_embeds=torch.from_numpy(embeds)[None],
            attention_mask=torch.ones((1, len(embeds)), dtype=torch.long),
            do_sample=False,
            max_new_tokens=40,
            num_beams=num_beams,
            pad_token_id=0,
            stopping_criteria=transformers.StoppingCriteriaList([repeats]),
        )[0].tolist()
        assert tokens == theirs[: len(tokens)]
        assert (reason == "repetition") == (len(tokens) < 40 and ends_in_repetition(tokens))


def test_beams_are_cut_at_a_stop_string(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("abcdeefgh")
    config = GenerationConfig(max_new_tokens=len(tokens), num_beams=2, stop_strings=("ef",))
    decoder = FakeDecoder(scripted(tokens, tokenizer.vocab_size, prompt=2))
    shown, result = drained(decoder, tokenizer, config)
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
    _, result = drained(decoder, tokenizer, config, cancel)
    assert result.finish_reason == "cancelled"
    assert len(decoder.rounds) == 1 + 4
    assert len(result.token_ids) == 4
    assert result.text == tokenizer.decode(result.token_ids)


def test_cancelling_between_tokens_yields_no_further_one() -> None:
    cancel = threading.Event()
    decoder = FakeDecoder(random_logits(30, 0))
    with decoder.open(1, 40) as (slot,):
        search = decode(Chunk(slot, [1, 1]), GenerationConfig(max_new_tokens=30), StopRules(frozenset()))
        tokens = Rounds(decoder).tokens(search, Terms(cancel=cancel))
        assert len([next(tokens), next(tokens), next(tokens)]) == 3
        cancel.set()
        assert list(tokens) == []
    assert len(decoder.rounds) == 3


@pytest.mark.parametrize("num_beams", [1, 3])
def test_cancelled_before_the_first_token(num_beams: int, tokenizer: Tokenizer) -> None:
    cancel = threading.Event()
    cancel.set()
    decoder = FakeDecoder(random_logits(tokenizer.vocab_size, 0))
    shown, result = drained(decoder, tokenizer, GenerationConfig(num_beams=num_beams), cancel)
    assert (shown, result.text, result.token_ids, result.finish_reason) == ([], "", [], "cancelled")
    assert decoder.rounds == []
