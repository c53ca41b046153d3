"""How an LLM takes turns, by the files of its folder: tokenizer, beginning and end symbols, chat template."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from salmonrun.runtime.config import PromptConfig
from salmonrun.runtime.errors import CheckpointError
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.foreign.pad_token import without_pad
from salmonrun.training.foreign.slow_tokenizer import convert_sentencepiece
from salmonrun.training.starting.template_process import render
from salmonrun.training.tensors import read_json


@dataclass(frozen=True)
class ChatTemplate:
    """The text around a user's message, with `{}` in the message's place."""

    text: str
    origin: str  # where it is from, for people
    complete: bool = False  # all special symbols are in the text: no beginning symbol is put in front of it


def read_chat_template(llm: Path) -> ChatTemplate:
    """The LLM's own template up to where the assistant speaks, or SALMONN's if it has none that a message fits into.

    The rendered text has the beginning symbol where the template puts it; like transformers we tokenize it as it is.

    Raises:
        CheckpointError: transformers cannot read the tokenizer's files.
    """
    salmonn = PromptConfig().template
    try:
        kind = "PreTrainedTokenizerFast" if (llm / "tokenizer.json").is_file() else "LlamaTokenizer"
        tokenizer = getattr(transformers, kind).from_pretrained(llm)
    except Exception as error:  # whatever files of another form make it stumble over
        raise CheckpointError(
            f"{llm}: transformers cannot read tokenizer_config.json and its neighbours: {error}; mend them, or pass "
            "template= (--template)"
        ) from error
    if not tokenizer.chat_template:
        return ChatTemplate(salmonn, "SALMONN's, as the LLM has no chat template")
    try:
        text = render(tokenizer.get_chat_template(), tokenizer.special_tokens_map)
    except Exception as error:  # a template is a program and may do anything
        return ChatTemplate(salmonn, f"SALMONN's, as the LLM's chat template fails on a plain message: {error}")
    if text.count("{}") != 1:
        return ChatTemplate(salmonn, f"SALMONN's, as the LLM's chat template makes {text!r} of the message '{{}}'")
    return ChatTemplate(text, "the LLM's chat template", complete=True)


@contextmanager
def tokenizer_file(llm: Path, rows: int) -> Iterator[Path]:
    """The LLM's tokenizer.json, or one made of its SentencePiece model or without a `[PAD]`, which is gone afterwards.

    Args:
        llm: its folder.
        rows: of its embedding table.

    Raises:
        CheckpointError: there is neither, or the model cannot be converted.
        MissingExtraError: converting it takes a package that is not installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = llm / "tokenizer.json"
        if not path.is_file():
            path = Path(scratch) / "tokenizer.json"
            _convert(llm).save(str(path))
        Tokenizer(path)  # refuses what is none
        shorter = without_pad(path, rows)
        if shorter is not None:
            path = Path(scratch) / "shorter.json"
            path.write_text(shorter)
        yield path


def _convert(llm: Path) -> tokenizers.Tokenizer:
    if not (llm / "tokenizer.model").is_file():
        raise CheckpointError(
            f"{llm / 'tokenizer.json'} does not exist, nor does tokenizer.model; make it with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return convert_sentencepiece(llm)


def read_bos(llm: Path, llm_config: dict[str, Any], tokenizer: Tokenizer) -> int | None:
    """The beginning symbol by the tokenizer's files, else by the LLM's config. None: there is none.

    The files come first: a config may name a symbol that the tokenizer does not use (Qwen).
    """
    for name, text in _named_tokens(llm, "bos_token"):
        if text is None:
            return None
        if text:
            return _token_id(text, "bos_token", llm / name, tokenizer)
    return llm_config.get("bos_token_id")


def read_end_symbol(llm: Path, tokenizer: Tokenizer) -> str:
    """The text of the token that ends an answer, as the tokenizer's files have it.

    Raises:
        CheckpointError: they name none, or one that tokenizer.json does not have.
    """
    for name, text in _named_tokens(llm, "eos_token"):
        if text:
            _token_id(text, "eos_token", llm / name, tokenizer)
            return text
    raise CheckpointError(f"{llm / 'tokenizer_config.json'} names no eos_token; say what ends an answer (--end-symbol)")


def read_special_id(llm: Path, key: str, tokenizer: Tokenizer) -> int | None:
    """The id of `bos_token` or `eos_token` as the tokenizer's files name it; None if they name none."""
    return next((_token_id(text, key, llm / name, tokenizer) for name, text in _named_tokens(llm, key) if text), None)


def read_eos(llm: Path, llm_config: dict[str, Any]) -> list[int]:
    """The ids transformers would stop at: those of generation_config.json, else those of the LLM's config.

    Raises:
        CheckpointError: they are no ids.
    """
    path = llm / "generation_config.json"
    stops = (read_json(path) if path.is_file() else {}).get("eos_token_id", llm_config.get("eos_token_id"))
    ids = [] if stops is None else stops if isinstance(stops, list) else [stops]
    if not all(type(each) is int and each >= 0 for each in ids):
        raise CheckpointError(f"{llm}: eos_token_id is {stops!r}; expected a token id, or a list of them")
    return ids


def stop_ids(llm: Path, llm_config: dict[str, Any], tokenizer: Tokenizer, end_symbol: str) -> tuple[int, ...]:
    """The id of the end symbol, then those the LLM would stop at by itself.

    Raises:
        CheckpointError: the end symbol is no token.
    """
    end = tokenizer.token_id(end_symbol)
    if end is None:
        raise CheckpointError(
            f"end symbol {end_symbol!r} is no token of the tokenizer; pass end_symbol= (--end-symbol)"
        )
    return tuple(dict.fromkeys([end, *read_eos(llm, llm_config)]))


def _named_tokens(llm: Path, key: str) -> list[tuple[str, str | None]]:
    """(file, text) of a special token, for each file that names it; None where it has null."""
    named: list[tuple[str, str | None]] = []
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = read_json(llm / name) if (llm / name).is_file() else {}
        if key in settings:
            token = settings[key]
            named.append((name, token.get("content") if isinstance(token, dict) else token))
    return named


def _token_id(text: str, key: str, where: Path, tokenizer: Tokenizer) -> int:
    token_id = tokenizer.token_id(text)
    if token_id is None:
        raise CheckpointError(f"{where}: {key} {text!r} is no token of tokenizer.json: wrong files?")
    return token_id
