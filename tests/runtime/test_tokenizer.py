"""Streamed text is the whole text, with three families of tokenizers."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers

from salmonrun.runtime.errors import BundleError
from salmonrun.runtime.tokenizer import REPLACEMENT, StreamingDetokenizer, Tokenizer
from salmonrun.training.starting.new_tokenizer import write_tokenizer

FAMILIES = ("byte", "llama3", "llama2")
Test = Callable[..., None]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters=REPLACEMENT), max_size=40)
NASTY = (
    "",
    " ",
    "  a  b ",
    "naïve café",
    "日本語のテキスト",
    "👩‍👩‍👧 👍🏽",
    "a\n\n b\tc",
    "\u0301e",
    "<s>x</s>",
    "▁_▁",
    "\x00\x7f",
)


def write_llama2_tokenizer(path: Path) -> None:
    """What transformers converts Llama 2's SentencePiece model to, with few tokens: bytes, letters, some words."""
    specials = ["<unk>", "<s>", "</s>"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.,'é日", "本"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("a", "n"), ("an", "d"), ("▁", "and"), ("▁", "▁")]
    merges = [*merges, ("日", "本")]
    vocab = dict.fromkeys([*specials, *pieces, *letters, *("".join(pair) for pair in merges)])
    ids = {token: i for i, token in enumerate(vocab)}
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.save(str(path))


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    if request.param == "byte":
        write_tokenizer(path)
    elif request.param == "llama2":
        write_llama2_tokenizer(path)
    else:
        path = golden / "salmonn" / "llm" / "tokenizer.json"
    return Tokenizer(path)


def pieces(tokenizer: Tokenizer, ids: list[int]) -> Iterator[str]:
    detokenizer = StreamingDetokenizer(tokenizer)
    for token_id in ids:
        yield detokenizer.add(token_id)
    yield detokenizer.finish()


def with_examples(texts: tuple[str, ...]) -> Callable[[Test], Test]:
    def decorate(test: Test) -> Test:
        for text in texts:
            test = example(text)(test)
        return test

    return decorate


@with_examples(NASTY)
@given(text=TEXTS)
def test_streamed_text_is_the_whole_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    streamed = list(pieces(tokenizer, ids))
    assert "".join(streamed) == tokenizer.decode(ids)
    assert not any(REPLACEMENT in piece for piece in streamed)


@given(data=st.data())
def test_streamed_ids_are_the_whole_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    streamed = list(pieces(tokenizer, ids))
    whole = tokenizer.decode(ids)
    assert "".join(streamed) == whole
    assert REPLACEMENT in whole or not any(REPLACEMENT in piece for piece in streamed)


@given(text=TEXTS.filter(bool), drop=st.integers(1, 3))
def test_text_cut_inside_a_character(tokenizer: Tokenizer, text: str, drop: int) -> None:
    """As max_new_tokens cuts it."""
    ids = tokenizer.encode(text)[:-drop]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_piece_waits_for_the_rest_of_its_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a€")
    *early, last, rest = pieces(tokenizer, ids)
    assert "".join([*early, last, rest]) == "a€"
    assert not any("€" in piece for piece in early)
    assert REPLACEMENT not in "".join(early)


def test_the_librarys_own_stream_takes_back_and_forgets(tmp_path: Path) -> None:
    """Why there is a class of ours. If this fails, `DecodeStream` may have become as good: use it."""
    write_llama2_tokenizer(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")

    def ids(*tokens: str) -> list[int]:
        return [library.get_vocab()[token] for token in tokens]

    spoiled = ids("<0x41>", "<0x87>", "d")  # "A", and a byte that is no character's
    assert "".join(pieces(tokenizer, spoiled)) == tokenizer.decode(spoiled) == f"A{REPLACEMENT}d"
    stream = decoders.DecodeStream(skip_special_tokens=True)
    assert stream.step(library, spoiled[0]) == "A"
    with pytest.raises(Exception, match="Invalid prefix"):
        [stream.step(library, token_id) for token_id in spoiled[1:]]
    unfinished = ids("a", "<0xE2>", "<0x82>")  # as max_new_tokens cuts a character
    assert "".join(pieces(tokenizer, unfinished)) == tokenizer.decode(unfinished) == "a" + REPLACEMENT * 2
    stream = decoders.DecodeStream(skip_special_tokens=True)
    assert [stream.step(library, token_id) for token_id in unfinished] == ["a", None, None]


@pytest.fixture(scope="module")
def sentencepiece_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    """SentencePiece, with Llama 2's settings, and a tokenizer.json of the same ids."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text").write_text("the cat and the dog, a thing or two;\nothers then: 日本語 été\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "model"),
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(folder / "model.model"))
    vocab = {oracle.id_to_piece(i): i for i in range(oracle.get_piece_size())}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    return oracle, Tokenizer(folder / "tokenizer.json")


@given(data=st.data())
def test_the_text_of_bytes_is_sentencepieces(sentencepiece_pair: tuple[Any, Tokenizer], data: st.DataObject) -> None:
    """Of any ids but <unk>, for which SentencePiece has a sign of its own; half of them bytes, some of characters."""
    oracle, tokenizer = sentencepiece_pair
    byte = st.sampled_from([0x0A, 0x20, 0x41, 0x7F, 0x80, 0x82, 0xAC, 0xC2, 0xC3, 0xE2, 0x96, 0xED, 0xF0, 0x9F, 0xFF])
    piece = st.integers(1, oracle.get_piece_size() - 1)
    ids = data.draw(st.lists(st.one_of(piece, byte.map(lambda value: value + 3)), max_size=20))
    assert tokenizer.decode(ids) == oracle.decode(ids)
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_what_stands_beside_a_bad_byte_is_kept(tmp_path: Path) -> None:
    """And a newline, which is a byte for Llama 2, is not waited with."""
    write_llama2_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    ids = [tokenizer.token_id(token) or 0 for token in ("<0x0A>", "<0x0A>", "<0xE2>", "<0x82>", "<0x0A>", "▁the")]
    assert tokenizer.decode(ids) == f"\n\n{REPLACEMENT * 2}\n the"
    assert list(pieces(tokenizer, ids)) == ["\n", "\n", "", "", f"{REPLACEMENT * 2}\n", " the", ""]


def test_ascii_is_not_held_back(tokenizer: Tokenizer) -> None:
    detokenizer = StreamingDetokenizer(tokenizer)
    said = ""
    for i, token_id in enumerate(ids := tokenizer.encode("and then, the end."), start=1):
        said += detokenizer.add(token_id)
        assert said == tokenizer.decode(ids[:i])
    assert detokenizer.finish() == ""


def test_long_texts_are_decoded_in_windows(tokenizer: Tokenizer) -> None:
    """The cost of a token must not grow with the text."""
    decoded = 0
    decode = tokenizer.decode

    class Counting(Tokenizer):
        def __init__(self) -> None:
            pass

        def decode(self, token_ids: Sequence[int]) -> str:
            nonlocal decoded
            decoded += len(token_ids)
            return decode(token_ids)

    ids = tokenizer.encode("and then the end, " * 100)
    assert "".join(pieces(Counting(), ids)) == decode(ids)
    assert decoded <= 8 * len(ids)


def test_encode_adds_no_special_tokens(golden: Path) -> None:
    tokenizer = Tokenizer(golden / "salmonn" / "llm" / "tokenizer.json")
    assert tokenizer.encode("") == []
    assert 512 not in tokenizer.encode("Hello")


def test_decode_skips_special_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.vocab_size == 258
    assert tokenizer.decode([256, *tokenizer.encode("hi"), 257]) == "hi"
    assert (tokenizer.token_id("<s>"), tokenizer.token_id("</s>"), tokenizer.token_id("<pad>")) == (256, 257, None)


@pytest.mark.parametrize("truncation", [True, False])
def test_padding_and_truncation_of_the_file_are_off(tmp_path: Path, truncation: bool) -> None:
    path = tmp_path / "tokenizer.json"
    write_tokenizer(path)
    configured = tokenizers.Tokenizer.from_file(str(path))
    if truncation:
        configured.enable_truncation(4)
    else:
        configured.enable_padding(length=100)
    configured.save(str(path))
    assert len(Tokenizer(path).encode("hello there")) == 11


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"version": "1.0", "model": {"type": "Nonsense"}}', "[]"])
def test_broken_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer\.json that can be read"):
        Tokenizer(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"gone\.json"):
        Tokenizer(tmp_path / "gone.json")
