"""An end symbol that is no token but text: an answer ends in front of it, as the published evaluator splits there."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from salmonrun.runtime import Engine, GenerationConfig, StreamConfig
from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.config import PromptConfig
from salmonrun.runtime.cut_text import CutText, cut_text
from salmonrun.runtime.prompt import end_texts
from salmonrun.runtime.search import StopRules
from salmonrun.training.checkpoint import load
from salmonrun.training.evaluation.evaluate import BundleSubject
from salmonrun.training.model.salmonn import SalmonnModel
from tests.helpers.damage import reseal

RECORDING = Path(__file__).parents[2] / "demo" / "recordings" / "shopping.flac"
SAID = "add paper and candles to the list"
END = "nd candles t"  # begins and ends in the middle of words
LEFT = "add paper a"


@pytest.fixture(scope="module")
def ending(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The demo, had it been trained with that as its end symbol."""
    bundle = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("ending") / "bundle"))
    reseal(bundle, lambda data: data["prompt"].update(end_symbol=END))
    return Engine.load(bundle)


def streamed(engine: Engine, policy: str) -> tuple[str, str]:
    """The text of a stream, and what its updates have added up to."""
    pcm = load_audio(RECORDING).pcm
    deltas = []
    with engine.stream(config=StreamConfig(policy=policy, update_s=0.3)) as stream:  # type: ignore[arg-type]
        for piece in np.array_split(pcm, 12):
            deltas += [update.delta for update in stream.push(piece)]
        result = stream.finish()
    return result.text, "".join(deltas)


WAYS: dict[str, Callable[[Engine], str]] = {
    "generate": lambda engine: engine.generate(RECORDING).text,
    "beams": lambda engine: engine.generate(RECORDING, config=GenerationConfig(num_beams=3)).text,
    "pieces": lambda engine: "".join(engine.generate_iter(RECORDING)),
    "transcribe": lambda engine: "|".join(segment.text for segment in engine.transcribe(RECORDING)[0]),
    "transcribe_iter": lambda engine: "".join(
        item for item in engine.transcribe_iter(RECORDING)[0] if isinstance(item, str)
    ),
    "agreement": lambda engine: streamed(engine, "agreement")[0],
    "block": lambda engine: streamed(engine, "block")[0],
}


@pytest.mark.parametrize("way", WAYS)
def test_the_text_ends_in_front_of_it(way: str, demo_engine: Engine, ending: Engine) -> None:
    assert WAYS[way](demo_engine) == SAID
    assert WAYS[way](ending) == LEFT


@pytest.mark.parametrize("policy", ["agreement", "block"])
def test_a_stream_never_says_it(policy: str, ending: Engine) -> None:
    text, told = streamed(ending, policy)
    assert LEFT.startswith(told)  # finish tells the rest
    assert text == LEFT


def test_decoding_ends_there_but_beams_are_those_of_the_model(demo_engine: Engine, ending: Engine) -> None:
    whole, short = demo_engine.generate(RECORDING), ending.generate(RECORDING)
    assert (short.finish_reason, len(short.token_ids) < len(whole.token_ids)) == ("stop", True)
    assert short.token_ids == whole.token_ids[: len(short.token_ids)]
    for config in (GenerationConfig(num_beams=3), GenerationConfig(stop_token_ids=(), max_new_tokens=30)):
        found = ending.generate(RECORDING, config=config)
        assert found.token_ids == demo_engine.generate(RECORDING, config=config).token_ids
        assert found.text == LEFT


def test_evaluation_splits_there(ending: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = BundleSubject(ending.bundle.folder)
    prompt = subject.prompts.tasks["asr"][0]
    assert subject.answer(load_audio(RECORDING), prompt, GenerationConfig()).text == LEFT
    model = load(Path(__file__).parents[2] / "demo" / "checkpoint")
    tokens = model.tokenizer.encode(SAID)
    assert model.text(tokens) == SAID
    monkeypatch.setattr(SalmonnModel, "prompts", subject.prompts)
    assert model.text(tokens) == LEFT


def test_a_stop_token_is_no_text(demo_engine: Engine) -> None:
    tokenizer = demo_engine.model.tokenizer
    token = demo_engine.bundle.manifest.prompt.stop_token_ids[0]
    known = demo_engine.bundle.manifest.prompt.end_symbol
    assert tokenizer.token_id(known) == token
    assert end_texts(PromptConfig(end_symbol=known, stop_token_ids=(token,)), tokenizer) == ()
    assert end_texts(PromptConfig(end_symbol="", stop_token_ids=(token,)), tokenizer) == ()
    assert end_texts(PromptConfig(end_symbol="###", stop_token_ids=(token,)), tokenizer) == ("###",)


def test_tokens_that_share_a_character_with_it_are_left_out() -> None:
    rules = StopRules(frozenset({9}), decode=lambda ids: "".join("ab.</s>"[i : i + 1] for i in ids), cuts=("</s>",))
    assert rules.in_front_of_end([0, 1, 2, 3, 4, 5, 6]) == [0, 1, 2]
    assert rules.in_front_of_end([0, 1, 9]) == [0, 1]
    merged = StopRules(frozenset(), decode=lambda ids: "".join(["ab", ".<", "/s>"][i] for i in ids), cuts=("</s>",))
    assert merged.in_front_of_end([0, 1, 2]) == [0]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("text", ["a stop b stop", "sto", "no end s", "stop", "ststop"])
def test_pieces_are_cut_as_the_whole(text: str, size: int) -> None:
    growing = CutText(("stop", "top b"))
    pieces = [growing.add(text[i : i + size]) for i in range(0, len(text), size)]
    assert "".join([*pieces, growing.add("", final=True)]) == cut_text(text, ("stop", "top b")) == text.split("stop")[0]
