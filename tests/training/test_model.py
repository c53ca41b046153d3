"""The whole model in PyTorch against what the published code gave (tests/assets/golden/README.md)."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from salmonrun.runtime import ConfigError, GenerationConfig, PromptError, load_audio
from salmonrun.runtime.audio import Audio
from salmonrun.runtime.prompt import prompt_ids
from salmonrun.training import SalmonnModel, load
from tests.helpers.losses import Answer, mean_loss

Arrays = Mapping[str, npt.NDArray[Any]]
AUDIO_TOLERANCE = 5e-4
LOGITS_TOLERANCE = 2e-2  # from the recording; AUDIO_TOLERANCE from the stored embeddings
BATCH_TOLERANCE = 1e-5
MAX_NEW_TOKENS = 24
TEMPLATE = ("USER: ", "\nASSISTANT:")


@pytest.fixture(scope="module")
def model(golden_checkpoint: Path) -> SalmonnModel:
    return load(golden_checkpoint)


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> SalmonnModel:
    return load(tiny_checkpoint)


@pytest.fixture(scope="module")
def expected(golden: Path) -> Arrays:
    return dict(np.load(golden / "salmonn" / "expected.npz"))


@pytest.fixture(scope="module")
def answers(golden: Path) -> dict[str, Any]:
    answers: dict[str, Any] = json.loads((golden / "salmonn" / "expected.json").read_text())
    return answers


@pytest.fixture(scope="module")
def audio(speech: Path) -> Audio:
    return load_audio(speech)


def prompts(answers: dict[str, Any]) -> list[str]:
    """The golden prompts, their template taken off."""
    before, after = TEMPLATE
    return [text.removeprefix(before).removesuffix(after) for text in answers["tokens"]]


def noise(seconds: float, seed: int = 0) -> Audio:
    pcm = np.random.default_rng(seed).normal(scale=0.1, size=round(seconds * 16000)).astype(np.float32)
    return load_audio(pcm, 16000)


@torch.inference_mode()
def test_audio_embeds(model: SalmonnModel, expected: Arrays, audio: Audio) -> None:
    got = model.encode(audio)
    assert got.shape == (1, 88, 64)
    assert np.abs(got[0].numpy() - expected["w1_audio_embeds"]).max() <= AUDIO_TOLERANCE


def test_prompt_halves_are_tokenized_as_published(model: SalmonnModel, answers: dict[str, Any]) -> None:
    for prompt, halves in zip(prompts(answers), answers["tokens"].values(), strict=True):
        ids = prompt_ids(model.prompts, model.tokenizer, prompt)
        assert list(ids.before) == [answers["bos_token_id"], *halves["before"]]
        assert list(ids.after) == halves["after"]


@torch.inference_mode()
@pytest.mark.parametrize("index", [0, 1])
def test_inputs_embeds_and_first_logits(
    model: SalmonnModel, expected: Arrays, answers: dict[str, Any], audio: Audio, index: int
) -> None:
    stored = expected[f"w1_p{index}_inputs_embeds"]
    embeds = model.embed_prompt(model.encode(audio), prompts(answers)[index])
    assert embeds.shape == (1, answers["runs"][index]["inputs_embeds_length"], 64) == (1, *stored.shape)
    assert np.abs(embeds[0].numpy() - stored).max() <= AUDIO_TOLERANCE
    first = expected[f"w1_p{index}_first_logits"]
    for inputs, tolerance in ((embeds, LOGITS_TOLERANCE), (torch.from_numpy(stored)[None], AUDIO_TOLERANCE)):
        logits = model.llm(inputs_embeds=inputs).logits[0, -1].numpy()
        assert np.abs(logits - first[: len(logits)]).max() <= tolerance


@torch.inference_mode()
def test_step_logits(model: SalmonnModel, expected: Arrays, answers: dict[str, Any]) -> None:
    """The logits behind every greedy token, from the stored embeddings."""
    ids, steps = answers["runs"][0]["greedy"]["ids"], expected["w1_p0_step_logits"]
    embeds = torch.from_numpy(expected["w1_p0_inputs_embeds"])[None]
    embeds = torch.cat([embeds, model.embed_tokens(ids[:-1])], dim=1)
    logits = model.llm(inputs_embeds=embeds, logits_to_keep=len(ids)).logits[0].numpy()
    assert len(steps) == len(ids)
    assert np.abs(logits - steps[:, : logits.shape[1]]).max() <= AUDIO_TOLERANCE


@pytest.mark.parametrize(("name", "num_beams"), [("greedy", 1), ("beam4", 4)])
@pytest.mark.parametrize("index", [0, 1])
def test_generated_ids_and_text(
    model: SalmonnModel, answers: dict[str, Any], speech: Path, index: int, name: str, num_beams: int
) -> None:
    config = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, num_beams=num_beams)
    ids = model.generate(speech, prompt=prompts(answers)[index], config=config)
    answer = answers["runs"][index][name]
    assert ids == answer["ids"]
    assert model.tokenizer.decode(ids) == answer["text"]


@torch.inference_mode()
def test_training_loss(model: SalmonnModel, answers: dict[str, Any], audio: Audio) -> None:
    answer = Answer(audio, prompts(answers)[0], answers["loss_texts"]["w1"])
    assert float(mean_loss(model, [answer])) == pytest.approx(answers["loss"]["w1"]["loss"], abs=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["model", "tiny"])
def test_a_batch_gives_what_each_clip_gives_alone(name: str, request: pytest.FixtureRequest) -> None:
    model: SalmonnModel = request.getfixturevalue(name)
    clips = [noise(1.3), noise(2.04, seed=1), noise(1.0, seed=2)]
    for clip, embeds in zip(clips, model.encode_batch(clips), strict=True):
        assert (embeds - model.encode(clip)).abs().max() <= BATCH_TOLERANCE


@torch.inference_mode()
def test_a_batch_of_trimmed_windows_gives_what_each_clip_gives_alone(tiny: SalmonnModel) -> None:
    config = replace(tiny.config, audio=replace(tiny.config.audio, window="trimmed"))
    model = SalmonnModel(config, tiny.tokenizer, tiny.whisper, tiny.audio_encoder, tiny.qformer, tiny.llm)
    clips = [noise(1.0), noise(1.01, seed=1), noise(3.3, seed=2)]
    batch = model.encode_batch(clips)
    assert [embeds.shape[1] for embeds in batch] == [3, 3, 10]  # windows of 17 frames over 50, 51 and 165
    for clip, embeds in zip(clips, batch, strict=True):
        assert (embeds - model.encode(clip)).abs().max() <= BATCH_TOLERANCE
    assert (batch[0] - tiny.encode(clips[0])[:, :3]).abs().max() > 1e-3  # an approximation of the padded window


@torch.inference_mode()
def test_the_loss_of_a_batch_is_the_mean_over_its_tokens(tiny: SalmonnModel) -> None:
    samples = [
        Answer(noise(1.0), "Write down what is said.", "one two"),
        Answer(noise(1.5, seed=1), "What is it?", "a much longer answer than the first"),
        Answer(noise(1.2, seed=2), "A prompt of quite another length, to shift the answer.", ""),
    ]
    single = [float(mean_loss(tiny, [sample])) for sample in samples]
    counts = [len(tiny.tokenizer.encode(sample.text + tiny.prompts.end_symbol)) for sample in samples]
    assert counts == [8, 36, 1]
    assert float(mean_loss(tiny, samples)) == pytest.approx(np.average(single, weights=counts), abs=1e-5)


def test_the_loss_reaches_every_trainable_part(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint)
    mean_loss(model, [Answer(noise(1.0), "Write down what is said.", "one two")]).backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # A single query attends to itself alone (its query and key are dead), and keys' biases cancel in a softmax.
    dead = ("self_attn.query.", "self_attn.key.", "key.bias")
    assert [name for name in silent if name.startswith("qformer.") and not any(part in name for part in dead)] == []


def test_stop_tokens_may_be_replaced(model: SalmonnModel, answers: dict[str, Any], speech: Path) -> None:
    prompt, ids = prompts(answers)[0], answers["runs"][0]["greedy"]["ids"]
    cut = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, stop_token_ids=(ids[3],))
    assert model.generate(speech, prompt=prompt, config=cut) == ids[:4]
    endless = GenerationConfig(max_new_tokens=len(ids) + 3, stop_token_ids=())
    longer = model.generate(speech, prompt=prompt, config=endless)
    assert len(longer) == len(ids) + 3
    assert longer[: len(ids)] == ids


@pytest.mark.parametrize("config", [GenerationConfig(do_sample=True), GenerationConfig(stop_strings=("a",))])
def test_what_the_reference_cannot_do_is_refused(tiny: SalmonnModel, speech: Path, config: GenerationConfig) -> None:
    with pytest.raises(ConfigError, match="reference"):
        tiny.generate(speech, task="asr", config=config)


def test_task_or_prompt(tiny: SalmonnModel, speech: Path) -> None:
    config = GenerationConfig(max_new_tokens=3)
    text = tiny.prompts.tasks["asr"][0]
    assert tiny.generate(speech, task="asr", config=config) == tiny.generate(speech, prompt=text, config=config)
    with pytest.raises(PromptError):
        tiny.generate(speech)
