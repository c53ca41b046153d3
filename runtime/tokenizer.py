"""Text to ids and back, and text that grows token by token without broken characters."""

import itertools
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
        self._bytes = self._byte_tokens()
        # Decoders take the space in front of a text away, but not that behind a letter.
        self._letter = self._find_letter() if self._bytes else []

    @property
    def vocab_size(self) -> int:
        """Ids the tokenizer knows, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def largest_id(self) -> int:
        """Of all tokens, added ones included; ids may have gaps."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no beginning or end symbols added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`; special tokens have none.

        Of byte-fallback tokenizers (Llama 2, Vicuna) it is SentencePiece's: a byte that is of no character becomes one
        replacement character, and what stands beside it is untouched. The tokenizers library would give up the whole
        run of bytes, newlines too.
        """
        text = ""
        for is_bytes, run in itertools.groupby(token_ids, self._bytes.__contains__):
            ids = list(run)
            if is_bytes:
                text += _characters(bytes(self._bytes[token_id] for token_id in ids))
            elif text:
                text += self._decode([*self._letter, *ids])[1:]
            else:
                text = self._decode(ids)
        return text

    def token_id(self, token: str) -> int | None:
        """The id of a whole token such as "</s>"; None if there is none."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def _decode(self, token_ids: list[int]) -> str:
        """As the library does it."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def _byte_tokens(self) -> dict[int, int]:
        """Tokens such as <0xE2>, and their bytes; none where they are text as any other."""
        ids = {self.token_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
        letter = self.token_id("<0x41>")
        if letter is None or self._decode([letter]) != "A":
            return {}
        return {token_id: byte for token_id, byte in ids.items() if token_id is not None}

    def _find_letter(self) -> list[int]:
        """A token whose text is one character, and no space or byte."""
        likely = (self.token_id(letter) for letter in "abcdefghijklmnopqrstuvwxyz")
        for token_id in itertools.chain(likely, range(self.vocab_size)):
            if token_id is None:
                continue
            text = "" if token_id in self._bytes else self._decode([token_id])
            if len(text) == 1 and not text.isspace():
                return [token_id]
        return []


def _characters(content: bytes) -> str:
    """UTF-8, with one replacement character for each byte that is of none."""
    text = ""
    while content:
        try:
            return text + content.decode()
        except UnicodeDecodeError as error:
            text += content[: error.start].decode() + REPLACEMENT * (error.end - error.start)
            content = content[error.end :]
    return text


class StreamingDetokenizer:
    """Turns ids into text pieces whose concatenation is `decode` of all ids.

    A piece is held back while its characters may still change: while it ends in an incomplete byte sequence. Only the
    ids since the last stable point are decoded again, so the cost per token does not grow.

    `tokenizers.decoders.DecodeStream` is not it: of byte-fallback tokens (Llama 2, Vicuna) it hands a character out
    before a bad byte behind it takes it back, then raises; and it has no end at which what was held back comes out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # decoding starts here, so that word-initial spaces are seen
        self._stable = 0  # ids before this have been emitted

    def add(self, token_id: int) -> str:
        """The text that became certain with this token; often one word, sometimes empty."""
        self._ids.append(token_id)
        before = self._tokenizer.decode(self._ids[self._context : self._stable])
        now = self._tokenizer.decode(self._ids[self._context :])
        if now.endswith(REPLACEMENT) or len(now) <= len(before):
            return ""
        self._context, self._stable = self._stable, len(self._ids)
        return now[len(before) :]

    def finish(self) -> str:
        """What was held back: the text of an unfinished byte sequence."""
        before = self._tokenizer.decode(self._ids[self._context : self._stable])
        now = self._tokenizer.decode(self._ids[self._context :])
        self._context = self._stable = len(self._ids)
        return now[len(before) :]
