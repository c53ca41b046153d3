"""Tokens on speech: what a quantized bundle must say where PyTorch is sure, and that spoiled weights do not."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.parity import greedy
from salmonrun.export.parity.greedy import MOST_TOKENS, Question, greedy_answers
from salmonrun.export.parity.speech import PACKAGED, compare_tokens, packaged_speech
from salmonrun.export.progress import Progress
from salmonrun.runtime import ConfigError, GenerationConfig
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import CheckpointError, ParityError
from salmonrun.runtime.parity import Parity, SpeechTokens, read_parity
from salmonrun.runtime.prompt import prompt_ids
from salmonrun.runtime.schema import from_dict
from salmonrun.training.checkpoint import load, open_checkpoint
from salmonrun.training.data.annotation import read_annotation
from tests.helpers.exports import noise, parity

DEMO = Path(__file__).parents[2] / "demo"
SILENT = Progress(1, show=False)
U8 = npt.NDArray[np.uint8]


def on_speech(bundle: Path) -> SpeechTokens:
    source = open_checkpoint(DEMO / "checkpoint")
    return compare_tokens(source, open_bundle(bundle, verify=False), packaged_speech(source.config), SILENT)["onnx"]


def spoil(graph: Path, name: str, change: Callable[[U8], U8]) -> None:
    """Change the bytes of the weights whose names end so, small ones left out."""
    data = np.memmap(f"{graph}.data", np.uint8, "r+")
    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    found = [tensor for tensor in tensors if tensor.name.endswith(name) and tensor.external_data]
    assert found, name
    for tensor in found:
        place = {entry.key: entry.value for entry in tensor.external_data}
        start = int(place["offset"])
        piece = slice(start, start + int(place["length"]))
        data[piece] = change(np.array(data[piece]))
    data.flush()


def test_a_trained_model_keeps_its_tokens(demo_bundle: Path) -> None:
    found = read_parity(open_bundle(demo_bundle))
    assert found.token_agreement == 0.9
    card = (demo_bundle / "README.md").read_text()
    assert "answers to 6 recordings of speech:\n\n- " in card
    for decoder, tokens in found.speech.items():
        assert (tokens.recordings, tokens.agreeing) == (6, tokens.positions)
        assert tokens.sure > 50
        assert f"{tokens}.\n" in card
        assert len(found.speech) == 1 or f"- {decoder}: {tokens}.\n" in card
    assert f"Demanded: {found.demanded}." in card


@pytest.mark.parametrize(
    ("graph", "name", "change"),
    [
        ("llm/decoder.onnx", "mlp.down_proj.weight", lambda weights: weights[::-1]),
        ("llm/decoder.onnx", "lm_head.weight", lambda weights: np.roll(weights, len(weights) // 2)),
        ("whisper.onnx", ".weight", np.zeros_like),
    ],
    ids=["a matrix of every layer", "the output layer", "Whisper"],
)
def test_spoiled_weights_say_something_else(
    demo_bundle: Path, tmp_path: Path, graph: str, name: str, change: Callable[[U8], U8]
) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    spoil(bundle / graph, name, change)
    tokens = on_speech(bundle)
    assert not tokens.agree(0.9)
    assert tokens.largest_lead > 0


def test_what_older_exporters_wrote_is_read(demo_bundle: Path) -> None:
    written = parity(demo_bundle)
    for younger in ("token_agreement", "speech"):
        del written[younger]
    read = from_dict(Parity, written, "parity.json")
    assert (read.on_speech, read.demanded) == ([], "relative error of every stage at most 0.35")


@pytest.fixture(scope="module")
def sure_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose logits are so large that the model is sure of what it says."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("sure") / "checkpoint"))
    tensors = load_file(folder / "model.safetensors")
    tensors["llm.model.norm.weight"] *= 50
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_bundle_that_says_something_else_is_not_written(tmp_path: Path, sure_checkpoint: Path) -> None:
    options = ExportOptions(llm_precision="int4", parity_budget=2.0)
    with pytest.raises(ParityError, match=r"llm, onnx: \d+ of \d+ tokens are .*; 90% of those are demanded"):
        export_bundle(sure_checkpoint, tmp_path / "bundle", options)
    assert list(tmp_path.iterdir()) == []
    bundle = open_bundle(export_bundle(sure_checkpoint, tmp_path / "bundle", replace(options, token_agreement=0.0)))
    tokens = read_parity(bundle).speech["onnx"]
    assert not tokens.agree(0.9)


def test_what_comes_with_the_project_is_what_the_demo_shows() -> None:
    (ours, _), (shown, _) = read_annotation(PACKAGED), read_annotation(DEMO / "recordings" / "annotation.json")
    spoken = {entry.path.stem: entry.text for entry in shown if entry.task == "asr"}
    assert {entry.path.stem: entry.text for entry in ours} == spoken
    assert all(entry.path.is_file() for entry in ours)


def test_an_exact_bundle_takes_no_speech(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="parity_speech is for quantized bundles"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", parity_speech=PACKAGED)


def test_an_annotation_without_speech_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "none.json").write_text('{"annotation": []}')
    options = ExportOptions(llm_precision="int8")
    with pytest.raises(CheckpointError, match=r"none\.json lists no speech"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", options, parity_speech=tmp_path / "none.json")


@pytest.mark.parametrize("passes", [1, 3, MOST_TOKENS])
def test_answers_are_greedy_searchs_as_far_as_they_go(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, passes: int
) -> None:
    """From no guess at all, each pass settles a token of every answer at least."""
    monkeypatch.setattr(greedy, "PASSES", passes)
    model = load(tiny_checkpoint)
    search = GenerationConfig(max_new_tokens=MOST_TOKENS, stop_repetition=False)
    questions, expected = [], []
    for seed, prompt in enumerate(("What is it?", "And this, which is longer?")):
        with torch.inference_mode():
            embeds = model.encode(noise(1.0 + seed, seed))
        ids = prompt_ids(model.prompts, model.tokenizer, prompt)
        questions.append(Question(ids, embeds[0].numpy(), [0] * MOST_TOKENS))
        expected.append(model.generate_from(model.embed_prompt(embeds, prompt), search))
    stops = frozenset(model.prompts.stop_token_ids)
    for answer, tokens in zip(
        greedy_answers(open_checkpoint(tiny_checkpoint), questions, stops, SILENT), expected, strict=True
    ):
        assert min(passes, len(tokens)) <= len(answer.tokens) == len(answer.logits)
        assert answer.tokens == tokens[: len(answer.tokens)]


def logits(*rows: dict[int, float]) -> Any:
    """[n, 4], zero but for these."""
    return np.array([[row.get(token, 0.0) for token in range(4)] for row in rows], np.float32)


def test_what_is_counted() -> None:
    reference = logits({1: 9}, {2: 9}, {3: 9, 0: 7}, {0: 0.5})
    tokens = SpeechTokens.between(logits({1: 5}, {2: 5}, {0: 5}, {1: 5}), reference, recordings=1)
    assert tokens == SpeechTokens(1, positions=4, agreeing=2, sure=3, sure_agreeing=2, largest_lead=2.0)
    assert "2 of 4 tokens are PyTorch's choice, 2 of the 3 it is sure of, which are too few" in str(tokens)


@pytest.mark.parametrize(
    ("sure", "agreeing", "agrees"), [(50, 45, True), (50, 44, False), (15, 0, True), (16, 0, False)]
)
def test_what_is_demanded(sure: int, agreeing: int, agrees: bool) -> None:
    tokens = SpeechTokens(6, positions=60, agreeing=agreeing, sure=sure, sure_agreeing=agreeing, largest_lead=1.0)
    assert tokens.agree(0.9) == agrees
    assert tokens.agree(0.0)
