"""Checkpoint to bundle: the same tokens whatever the dimensions, and those of the published code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from salmonrun.export import export_bundle
from salmonrun.runtime import Engine, GenerationConfig, load_audio
from salmonrun.runtime.config import AudioConfig, PromptConfig, WindowConfig
from salmonrun.runtime.decoder import prefill
from salmonrun.runtime.golden import check
from salmonrun.training import ModelConfig, load
from salmonrun.training.checkpoint import save
from salmonrun.training.model.config import LoraConfig, QFormerConfig, WhisperConfig
from salmonrun.training.model.encoders.beats import BeatsConfig
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import TASKS
from tests.helpers.encoders import ENCODERS, stages
from tests.helpers.exports import TINY, TOLERANCE, noise, parity

MAX_NEW_TOKENS = 24


def random_config(seed: int) -> ModelConfig:
    """Any small model."""
    rng = np.random.default_rng(seed)

    def pick(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    n_mels = pick(80, 128)
    speech_heads, audio_heads, qformer_heads = (int(rng.integers(1, 4)) for _ in range(3))
    frames = int(rng.integers(8, 41))
    stride = pick(frames, frames - int(rng.integers(1, 5)), frames + int(rng.integers(1, 20)))
    beats = BeatsConfig(
        dim=16 * audio_heads * pick(1, 2),
        layers=int(rng.integers(1, 4)),
        heads=audio_heads,
        ffn=pick(32, 72),
        patch_dim=pick(16, 40),
        conv_pos_groups=pick(4, 16),
        num_buckets=pick(320, 32),
        max_distance=pick(800, 128),
    )
    return ModelConfig(
        name=f"random-{seed}",
        whisper=WhisperConfig(
            d_model=16 * speech_heads * pick(1, 2),
            layers=int(rng.integers(1, 4)),
            heads=speech_heads,
            ffn=pick(48, 64),
            n_mels=n_mels,
        ),
        audio_encoder=pick(beats, beats, None),
        qformer=QFormerConfig(
            dim=16 * qformer_heads * pick(1, 2),
            layers=int(rng.integers(1, 4)),
            heads=qformer_heads,
            ffn=pick(40, 96),
            window=WindowConfig(frames, stride, num_queries=pick(1, 2, 3)),
        ),
        llm=random_llm(rng, pick),
        lora=pick(
            None,
            LoraConfig(r=8, alpha=32.0),
            LoraConfig(r=3, alpha=4.0, targets=("q_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        ),
        audio=AudioConfig(n_mels=n_mels, min_s=pick(0.4, 1.0), window=pick("padded", "trimmed")),
        prompt=PromptConfig(
            template=pick("USER: {}\nASSISTANT:", "{}"),
            tasks=TASKS,
            bos_token_id=pick(256, None),
            stop_token_ids=(257, *map(int, rng.choice(256, size=pick(0, 8, 40), replace=False))),
            end_symbol="</s>",
        ),
    )


def random_llm(rng: np.random.Generator, pick: Callable[..., Any]) -> dict[str, Any]:
    """Any small Llama. Its heads need not fill its width, nor fit into it."""
    kv_heads = int(rng.integers(1, 4))
    heads = kv_heads * pick(1, 2, 3)
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    theta, scaling = (
        pick(10000.0, 500000.0),
        pick({"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0}, llama3),
    )
    spelling = pick(
        {"rope_theta": theta, "rope_scaling": None if scaling == {"rope_type": "default"} else scaling},
        {"rope_parameters": {"rope_theta": theta, **scaling}},  # as transformers 5 writes it
    )
    return {
        "model_type": "llama",
        "vocab_size": 258 + int(rng.integers(0, 20)),
        "hidden_size": heads * pick(8, 12, 16),
        "intermediate_size": pick(40, 128),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": pick(16, 32),
        "max_position_embeddings": 2048,
        "rms_norm_eps": pick(1e-5, 1e-6),
        "tie_word_embeddings": pick(True, False),
        "bos_token_id": 256,
        "eos_token_id": 257,
        **spelling,
    }


@pytest.mark.parametrize("seed", range(20))
def test_any_small_model_says_in_a_bundle_what_it_says_in_pytorch(tmp_path: Path, seed: int) -> None:
    config = random_config(seed)
    init_checkpoint(config, tmp_path / "checkpoint", seed)
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    measured = parity(bundle)
    encoders = {"whisper", "audio_encoder"} if config.audio_encoder else {"whisper"}
    assert set(measured["stages"]) == stages({*encoders, "qformer", "llm"})
    for name, error in (measured["stages"] | {"end to end": measured["end_to_end"]}).items():
        assert error["max_abs"] <= TOLERANCE * max(1.0, error["scale"]), name
    assert measured["greedy_tokens_equal"]
    assert measured["budget"] is None
    model, engine = load(tmp_path / "checkpoint"), Engine.load(bundle)
    assert check(engine).passed
    assert check(Engine.load(bundle, encoder="onnx")).passed
    rng = np.random.default_rng(seed)
    audio = noise(rng.uniform(0.4, 6.0), seed)
    prompt = f"Prompt {seed}: what is it?"
    for num_beams in (1, 4):
        search = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, num_beams=num_beams)
        expected = model.generate(audio, prompt=prompt, config=search)
        assert engine.generate(audio, prompt=prompt, config=search).token_ids == expected


def test_a_quiet_beats(tmp_path: Path) -> None:
    """States so small that the epsilon of every norm matters: the graph folds DeepNorm's factor into it."""
    init_checkpoint(TINY, tmp_path / "loud", 0)
    model = load(tmp_path / "loud")
    assert model.audio_encoder is not None
    with torch.no_grad():
        for name, parameter in model.audio_encoder.named_parameters():
            if "norm" in name or name.split(".")[-2] in ("out_proj", "fc2"):
                parameter.mul_(3e-3)
    save(model, tmp_path / "quiet", tmp_path / "loud" / "tokenizer.json")
    measured = parity(export_bundle(tmp_path / "quiet", tmp_path / "bundle"))["stages"]
    for stage in stages({"audio_encoder"}):
        assert measured[stage]["scale"] < 0.01
        assert measured[stage]["relative"] <= 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("seconds", [0.4, 1.0, 30.0])
def test_audio_embeds_of_any_length(tiny_checkpoint: Path, tiny_engine: Engine, seconds: float) -> None:
    model = load(tiny_checkpoint)
    audio = model.load_audio(noise(seconds, 9).pcm, 16000)
    expected = model.encode(audio)[0].numpy()
    assert expected.shape == (88, 64)
    assert np.abs(tiny_engine.model.encoder.encode(audio) - expected).max() <= TOLERANCE


@pytest.fixture(scope="module", params=ENCODERS)
def golden_engine(golden_bundle: Path, request: pytest.FixtureRequest) -> Engine:
    return Engine.load(golden_bundle, encoder=request.param)


def test_golden_audio_embeds(golden: Path, golden_engine: Engine, speech: Path) -> None:
    expected = np.load(golden / "salmonn" / "expected.npz")["w1_audio_embeds"]
    got = golden_engine.model.encoder.encode(load_audio(speech))
    assert got.shape == (88, 64)
    assert np.abs(got - expected).max() <= 5e-4


@pytest.mark.parametrize(("name", "num_beams"), [("greedy", 1), ("beam4", 4)])
@pytest.mark.parametrize("index", [0, 1])
def test_golden_answers(
    golden: Path, golden_engine: Engine, speech: Path, index: int, name: str, num_beams: int
) -> None:
    cases = json.loads((golden / "salmonn" / "expected.json").read_text())
    prompt = list(cases["tokens"])[index].removeprefix("USER: ").removesuffix("\nASSISTANT:")
    search = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, num_beams=num_beams)
    result = golden_engine.generate(speech, prompt=prompt, config=search)
    assert result.token_ids == cases["runs"][index][name]["ids"]
    assert result.text == cases["runs"][index][name]["text"]


def test_golden_first_logits_from_stored_embeddings(golden: Path, golden_engine: Engine) -> None:
    expected = np.load(golden / "salmonn" / "expected.npz")
    decoder = golden_engine.model.decoder
    for index in (0, 1):
        embeds = expected[f"w1_p{index}_inputs_embeds"]
        with decoder.open(1, len(embeds)) as (slot,):
            logits = prefill(decoder, slot, embeds)
        assert np.abs(logits - expected[f"w1_p{index}_first_logits"][: len(logits)]).max() <= 5e-4
