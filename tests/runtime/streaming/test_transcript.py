"""The text of a stream grows, and is never taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salmonrun.runtime import Engine
from salmonrun.runtime.streaming.transcript import Transcript
from salmonrun.runtime.tokenizer import Tokenizer

END = 257  # </s>: a token without a text


@pytest.fixture(scope="module")
def tokenizer(streaming_engine: Engine) -> Tokenizer:
    """Of bytes: most tokens are parts of a character."""
    return streaming_engine.model.tokenizer


def encoded(text: str) -> list[int]:
    return list(text.encode())


def test_utterances_are_lines(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer)
    first, second = tokenizer.encode("one two"), tokenizer.encode("three")
    assert transcript.partial(first) == "one two"
    assert transcript.add(first[:3]) == "one"
    assert transcript.partial(first) == " two"
    assert transcript.end_utterance(first) == (" two", "one two")
    assert transcript.partial(second) == "\nthree"
    assert transcript.add(second[:1]) == "\nt"
    assert transcript.partial(second) == "hree"
    assert transcript.end_utterance(second) == ("hree", "three")
    assert transcript.stable == "one two\nthree"


def test_an_empty_utterance_makes_no_line(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer)
    for text, stable in (("", ""), ("a", "a"), ("", "a"), ("b", "a\nb"), ("", "a\nb")):
        transcript.end_utterance(tokenizer.encode(text))
        assert transcript.stable == stable
    assert transcript.partial([]) == ""


def test_half_a_character_waits_for_the_other_half(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer)
    tokens = tokenizer.encode("aé")
    assert len(tokens) == 3
    assert transcript.add(tokens[:2]) == "a"
    assert transcript.partial(tokens) == "é"
    assert transcript.add(tokens[2:]) == "é"
    broken = Transcript(tokenizer)
    assert broken.end_utterance(tokens[:2]) == ("a\ufffd", "a\ufffd")


@given(st.lists(st.tuples(st.lists(st.integers(0, END), max_size=12), st.lists(st.integers(0, 12))), max_size=4))
def test_however_tokens_become_certain(tokenizer: Tokenizer, utterances: list[tuple[list[int], list[int]]]) -> None:
    transcript = Transcript(tokenizer)
    deltas: list[str] = []
    texts: list[str] = []
    for tokens, cuts in utterances:
        done = 0
        for cut in sorted(cuts):
            deltas.append(transcript.add(tokens[done:cut]))
            done = max(done, min(cut, len(tokens)))
            assert transcript.stable == "".join(deltas)
            shown = transcript.stable + transcript.partial(tokens)
            assert shown == "\n".join(filter(None, [*texts, tokenizer.decode(tokens)]))
        delta, text = transcript.end_utterance(tokens)
        deltas.append(delta)
        texts.append(text)
        assert text == tokenizer.decode(tokens)
    assert transcript.stable == "".join(deltas) == "\n".join(filter(None, texts))
