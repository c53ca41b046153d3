"""Text to ids and back, and text that grows token by token without broken characters."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as _FastTokenizer

from salmonrun.runtime.errors import BundleError

REPLACEMENT = "\ufffd"  # what a decoder shows for bytes that are not (yet) a character


class Tokenizer:
    """A `tokenizer.json` without special-token magic: encode adds none, decode skips them."""

    def __init__(self, path: str | Path) -> None:
        try:
            self._tokenizer = _FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path} is not a tokenizer.json that can be read: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}

    @property
    def vocab_size(self) -> int:
        """Ids the tokenizer knows, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no beginning or end symbols added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`; special tokens have none."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def has_text(self, token_id: int) -> bool:
        """Whether decoding sees a token: special tokens and ids beyond the vocabulary are skipped."""
        return token_id not in self._special and self._tokenizer.id_to_token(token_id) is not None

    def is_byte(self, token_id: int) -> bool:
        """Whether a token is a single byte of a byte-fallback tokenizer, such as <0xE2>."""
        token = self._tokenizer.id_to_token(token_id)
        return token is not None and len(token) == 6 and token.startswith("<0x") and token.endswith(">")

    def token_id(self, token: str) -> int | None:
        """The id of a whole token such as "</s>"; None if there is none."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)


class StreamingDetokenizer:
    """Turns ids into text pieces whose concatenation is `decode` of all ids.

    A piece is held back while its characters may still change: while it ends in an incomplete byte sequence, or in a
    run of byte-fallback tokens, which one bad byte spoils as a whole. Only the ids since the last stable point are
    decoded again, so the cost per token does not grow.

    `tokenizers.decoders.DecodeStream` is not it: of byte-fallback tokens (Llama 2, Vicuna) it hands a character out
    before a bad byte behind it takes it back, then raises; and it has no end at which what was held back comes out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # decoding starts here, so that word-initial spaces are seen
        self._stable = 0  # ids before this have been emitted
        self._in_bytes = False  # the last id with a text is a byte of a byte-fallback tokenizer

    def add(self, token_id: int) -> str:
        """The text that became certain with this token; often one word, sometimes empty."""
        self._ids.append(token_id)
        if self._tokenizer.has_text(token_id):
            self._in_bytes = self._tokenizer.is_byte(token_id)
        before = self._tokenizer.decode(self._ids[self._context : self._stable])
        now = self._tokenizer.decode(self._ids[self._context :])
        if self._in_bytes or now.endswith(REPLACEMENT) or len(now) <= len(before):
            return ""
        self._context, self._stable = self._stable, len(self._ids)
        return now[len(before) :]

    def finish(self) -> str:
        """What was held back: the text of an unfinished byte sequence."""
        before = self._tokenizer.decode(self._ids[self._context : self._stable])
        now = self._tokenizer.decode(self._ids[self._context :])
        self._context = self._stable = len(self._ids)
        return now[len(before) :]
