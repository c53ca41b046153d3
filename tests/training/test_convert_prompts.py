"""What a converted model is told and where its answers end: prompts, beginning and end symbols."""

import json

import pytest
import torch

from salmonrun.training.model.config import load_config
from salmonrun.training.starting.prompts import read_prompts
from tests.helpers.published import Published


def test_an_end_symbol_that_is_text_is_kept_and_warned_about(published: Published) -> None:
    """As in the published stage-2 files for Llama 3: the model was trained to write it out."""
    published.edit(lambda loaded: loaded["config"]["model"].update(end_sym="</s>"))
    conversion = published.convert()
    assert any("end_sym '</s>' is no token" in warning and "--end-symbol" in warning for warning in conversion.warnings)
    prompt = load_config(published.out).prompt
    assert (prompt.end_symbol, prompt.stop_token_ids) == ("</s>", (513, 517, 518))


def test_a_text_that_is_asked_for_as_end_symbol_is_refused(published: Published) -> None:
    published.refuses(r"end symbol '</s>' is no token.*--end-symbol", end_symbol="</s>")


def test_without_an_end_symbol_the_tokenizers_own_ends(published: Published) -> None:
    published.edit(lambda loaded: loaded["config"]["model"].pop("end_sym"))
    published.convert()
    assert load_config(published.out).prompt.end_symbol == "<|end_of_text|>"


def test_another_end_symbol_stops_too(published: Published) -> None:
    published.convert(end_symbol="<|begin_of_text|>")
    prompt = load_config(published.out).prompt
    assert prompt.stop_token_ids == (512, 513, 517, 518)
    assert prompt.end_symbol == "<|begin_of_text|>"


def test_a_single_end_of_text_id(published: Published) -> None:
    published.edit_json("llm/generation_config.json", lambda raw: raw.update(eos_token_id=517))
    published.convert()
    assert load_config(published.out).prompt.stop_token_ids == (513, 517)


def test_end_ids_of_the_config_serve_where_there_is_no_generation_config(published: Published) -> None:
    published.edit_json("llm/generation_config.json", lambda raw: raw.pop("eos_token_id"))
    published.edit_json("llm/config.json", lambda raw: raw.update(eos_token_id=[518]))
    published.convert()
    assert load_config(published.out).prompt.stop_token_ids == (513, 518)


@pytest.mark.parametrize(("bos", "expected"), [(None, None), ({"content": "<|eot_id|>"}, 518)])
def test_the_tokenizer_decides_on_the_beginning_symbol(
    published: Published, bos: dict[str, str] | None, expected: int | None
) -> None:
    published.edit_json("llm/tokenizer_config.json", lambda raw: raw.update(bos_token=bos))
    published.convert()
    assert load_config(published.out).prompt.bos_token_id == expected


def test_the_tied_output_layer_of_a_model_without_peft_is_left_out(published: Published) -> None:
    def without_peft(state: dict[str, torch.Tensor]) -> None:
        tied = state.pop("llama_model.base_model.model.lm_head.weight")
        for name in [name for name in state if name.startswith("llama_model.")]:
            del state[name]
        state["llama_model.lm_head.weight"] = tied

    published.edit_model(without_peft)
    conversion = published.convert()
    assert conversion.leftovers["llama_model.lm_head.weight"] == "tied output layer of the frozen LLM"
    assert load_config(published.out).lora is None


def test_a_beginning_symbol_the_tokenizer_lacks_is_refused(published: Published) -> None:
    published.edit_json("llm/tokenizer_config.json", lambda raw: raw.update(bos_token="<s>"))
    published.refuses(r"bos_token '<s>' is no token")


def test_an_empty_beginning_symbol_leaves_it_to_the_config(published: Published) -> None:
    published.edit_json("llm/tokenizer_config.json", lambda raw: raw.update(bos_token=""))
    (published.llm / "special_tokens_map.json").unlink()
    published.convert()
    assert load_config(published.out).prompt.bos_token_id == 512


def test_prompts_of_a_file(published: Published) -> None:
    path = published.folder / "prompts.json"
    speech = "<Speech><SpeechHere></Speech> "
    path.write_text(json.dumps({"asr": [f"{speech}One.", f"{speech}Two.\n"], "QA": f"{speech}Answer: {{}}"}))
    expected = {"asr": (f"{speech}One.", f"{speech}Two.\n"), "QA": (f"{speech}Answer: {{}}",)}
    assert read_prompts(path) == expected
    published.convert(prompts=path)
    assert load_config(published.out).prompt.tasks == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"asr": ["<SpeechHere> a", "no placeholder"]}', r"'asr' has a prompt without <SpeechHere>: 'no placeholder'"),
        ('{"asr": "Recognize."}', r"'asr' has a prompt without <SpeechHere>"),
        ('["<SpeechHere>"]', r"holds a list; expected an object"),
        ("{", r"is not JSON"),
        ('{"asr": 5}', r"'asr'"),
        ('{"asr": ["<SpeechHere> a", 5]}', r"'asr'"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(published: Published, content: str, message: str) -> None:
    path = published.folder / "prompts.json"
    path.write_text(content)
    published.refuses(message, prompts=path)
