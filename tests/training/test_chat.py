"""Beginning and end symbols by family, from tokenizer, generation and model configs as they are published."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from salmonrun.runtime.config import PromptConfig
from salmonrun.runtime.errors import CheckpointError
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.starting import template_process
from salmonrun.training.starting.chat import (
    read_bos,
    read_chat_template,
    read_end_symbol,
    read_eos,
    read_special_id,
    stop_ids,
    tokenizer_file,
)
from salmonrun.training.starting.conversion_checks import check_tokenizer


def added(text: str) -> dict[str, Any]:
    """A token as published files write it out."""
    return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": False, "rstrip": False}


@dataclass(frozen=True)
class Family:
    """What a published folder says; token ids are written as the tokens' texts, and turned into ids by the test."""

    specials: tuple[str, ...]
    tokenizer_config: dict[str, Any]
    config: dict[str, Any]
    generation: dict[str, Any] | None
    bos: str | None
    stops: tuple[str, ...]  # where the tokenizer's own end symbol ends an answer
    warns: bool = False


LLAMA_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
R1 = ("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>")  # noqa: RUF001
FAMILIES = {
    "Llama-2": Family(
        ("<unk>", "<s>", "</s>"),
        {"add_bos_token": True, "bos_token": added("<s>"), "eos_token": added("</s>"), "legacy": False},
        {"bos_token_id": "<s>", "eos_token_id": "</s>"},
        {"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": 0, "temperature": 0.6},
        "<s>",
        ("</s>",),
    ),
    "Vicuna-v1.5": Family(
        ("<unk>", "<s>", "</s>"),
        {"add_bos_token": True, "bos_token": added("<s>"), "eos_token": added("</s>"), "pad_token": None},
        {"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": 0},
        None,
        "<s>",
        ("</s>",),
    ),
    "Llama-3.2-Instruct": Family(
        LLAMA_3,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        {"bos_token_id": "<|begin_of_text|>", "eos_token_id": ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]},
        {"bos_token_id": "<|begin_of_text|>", "eos_token_id": ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]},
        "<|begin_of_text|>",
        ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
    ),
    "Qwen2.5-Instruct": Family(
        QWEN,
        {"add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>"},
        {"bos_token_id": "<|endoftext|>", "eos_token_id": ["<|im_end|>", "<|endoftext|>"]},
        None,
        ("<|im_end|>", "<|endoftext|>"),
    ),
    "Qwen3": Family(
        QWEN,
        {"add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>"},
        {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>"},
        {"bos_token_id": "<|endoftext|>", "eos_token_id": ["<|im_end|>", "<|endoftext|>"], "top_k": 20},
        None,
        ("<|im_end|>", "<|endoftext|>"),
    ),
    "Mistral-v0.3": Family(
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "legacy": False},
        {"bos_token_id": "<s>", "eos_token_id": "</s>"},
        {"bos_token_id": "<s>", "eos_token_id": "</s>"},
        "<s>",
        ("</s>",),
    ),
    "DeepSeek-R1-Distill-Qwen": Family(
        R1,
        {"add_bos_token": True, "bos_token": added(R1[3]), "eos_token": added(R1[0]), "pad_token": added(R1[0])},
        {"bos_token_id": R1[0], "eos_token_id": R1[0]},  # config.json still has Qwen's <|endoftext|> as its beginning
        {"bos_token_id": R1[3], "eos_token_id": R1[0]},
        R1[3],
        (R1[0],),
        warns=True,
    ),
}


def write(folder: Path, family: Family) -> tuple[Tokenizer, dict[str, Any]]:
    fast = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    fast.add_special_tokens(list(family.specials))
    fast.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer(folder / "tokenizer.json")

    def ids(raw: dict[str, Any]) -> dict[str, Any]:
        named = {key: value for key, value in raw.items() if key in ("bos_token_id", "eos_token_id")}
        found = {
            key: [tokenizer.token_id(text) for text in value] if isinstance(value, list) else tokenizer.token_id(value)
            for key, value in named.items()
        }
        return raw | found

    (folder / "tokenizer_config.json").write_text(json.dumps(family.tokenizer_config))
    if family.generation:
        (folder / "generation_config.json").write_text(json.dumps(ids(family.generation)))
    return tokenizer, ids(family.config) | {"vocab_size": tokenizer.vocab_size}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_symbols_are_those_the_folder_names(tmp_path: Path, family: Family) -> None:
    tokenizer, config = write(tmp_path, family)
    bos = read_bos(tmp_path, config, tokenizer)
    assert bos == (None if family.bos is None else tokenizer.token_id(family.bos))
    assert read_special_id(tmp_path, "bos_token", tokenizer) == bos
    end = read_end_symbol(tmp_path, tokenizer)
    assert end == family.stops[0]
    assert stop_ids(tmp_path, config, tokenizer, end) == tuple(map(tokenizer.token_id, family.stops))
    warnings = check_tokenizer(tmp_path, config, tokenizer)
    assert bool(warnings) == family.warns
    assert all("bos_token" in warning for warning in warnings)


def test_a_llama_3_tokenizer_in_a_llama_2_folder_is_refused(tmp_path: Path) -> None:
    tokenizer, config = write(tmp_path, FAMILIES["Llama-3.2-Instruct"])
    with pytest.raises(CheckpointError, match=r"the tokenizer has 5 tokens, the LLM 4: they do not belong together"):
        check_tokenizer(tmp_path, config | {"vocab_size": 4}, tokenizer)


def test_the_pad_that_training_added_is_left_out(tmp_path: Path) -> None:
    """A folder whose tokenizer was saved with it, behind the LLM's own tokens: all other ids are the same."""
    tokenizer, config = write(tmp_path, FAMILIES["Llama-3.2-Instruct"])
    path = tmp_path / "tokenizer.json"
    whole = tokenizers.Tokenizer.from_file(str(path))
    rows = whole.get_vocab_size()
    whole.add_special_tokens(["[PAD]"])
    whole.enable_padding(pad_id=rows, pad_token="[PAD]")
    whole.save(str(path))
    assert Tokenizer(path).vocab_size == rows + 1
    with tokenizer_file(tmp_path, rows) as kept:
        shorter = Tokenizer(kept)
        assert shorter.vocab_size == rows
        assert not check_tokenizer(tmp_path, config, shorter)
        text = "".join(FAMILIES["Llama-3.2-Instruct"].specials)
        assert shorter.encode(text) == tokenizer.encode(text)
    with tokenizer_file(tmp_path, rows + 1) as own:  # which the LLM has a row for
        assert own == path
    whole.add_special_tokens(["<more>"])
    whole.save(str(path))
    with tokenizer_file(tmp_path, rows) as more, pytest.raises(CheckpointError, match="do not belong together"):
        check_tokenizer(tmp_path, config, Tokenizer(more))


def test_special_tokens_the_tokenizer_lacks_are_refused(tmp_path: Path) -> None:
    """A Llama 2 tokenizer in a Llama 3 folder."""
    tokenizer, _ = write(tmp_path, FAMILIES["Llama-2"])
    llama_3 = {"vocab_size": 128256, "bos_token_id": 128000, "eos_token_id": [128001]}
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"names token 128001, the tokenizer has 4"):
        check_tokenizer(tmp_path, llama_3, tokenizer)


def test_an_end_symbol_that_stands_for_another_token_is_warned_about(tmp_path: Path) -> None:
    tokenizer, config = write(tmp_path, FAMILIES["Vicuna-v1.5"])
    (warning,) = check_tokenizer(tmp_path, config | {"eos_token_id": 1}, tokenizer)
    assert "eos_token is token 3 in the tokenizer's files and [1] in the LLM's" in warning


# What a published folder may do


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ENDLESS, "it was stopped after 1 s, or had no memory left"),
        ("{{ 10 ** (10 ** 9) }}{}", "it was stopped after 1 s, or had no memory left"),
        ("{{ 'x' * 10 ** 11 }}{}", "SALMONN's, as the LLM's chat template fails on a plain message: "),
        ("{{ raise_exception('no') }}", "fails on a plain message: no"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "makes '{}{}' of the message '{}'"),
    ],
)
def test_templates_that_do_not_end_or_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, reason: str
) -> None:
    monkeypatch.setattr(template_process, "SECONDS", 1)
    found = read_chat_template(llm_of(tmp_path, {"chat_template": template}))
    assert found.text == PromptConfig().template
    assert reason in found.origin


def test_a_template_knows_the_special_tokens(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    config = {"chat_template": template, "bos_token": "<s>"}
    assert read_chat_template(llm_of(tmp_path, config)).text == "<s><user>{}<a>"


@pytest.mark.parametrize(
    "content", ['{"added_tokens_decoder": 5}', "[" * 100_000, "[1]", '{"bos_token": {"content": 5}}']
)
def test_tokenizer_configs_that_are_none(tmp_path: Path, content: str) -> None:
    folder = llm_of(tmp_path, {})
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"transformers cannot read tokenizer_config\.json and its neighbours"):
        read_chat_template(folder)


@pytest.mark.parametrize("stops", ["x", [[1]], [1, "2"], True, -1, 1.5, {}])
def test_stops_that_are_no_ids(tmp_path: Path, stops: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    with pytest.raises(CheckpointError, match=r"eos_token_id is .*; expected a token id, or a list of them"):
        read_eos(tmp_path, {})


def llm_of(folder: Path, config: dict[str, Any]) -> Path:
    """A tokenizer's files."""
    vocab = {"<s>": 0, "a": 1}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="a")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
