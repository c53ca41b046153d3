"""Whole models with each audio encoder, or none: exported exactly, and answering as PyTorch does at any length."""

from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.graphs.encoders import BUILDERS
from salmonrun.export.weights.encoders import WRITERS
from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.config import AudioConfig, WindowConfig
from salmonrun.training.checkpoint import load, open_checkpoint
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.model.salmonn import SalmonnModel
from salmonrun.training.starting.assemble import assemble, format_assembly
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from tests.helpers import eat as published
from tests.helpers.answers import noise
from tests.helpers.encoders import BEATS, EAT, ENCODERS, KINDS, config, stages
from tests.helpers.exports import parity
from tests.helpers.losses import Answer, mean_loss
from tests.helpers.parts import write_llm, write_whisper

GREEDY = GenerationConfig(max_new_tokens=12, stop_token_ids=())
Pair = tuple[SalmonnModel, Engine]
Exported = tuple[SalmonnModel, Path]


def make(folder: Path, model: ModelConfig, options: ExportOptions | None = None) -> Exported:
    init_checkpoint(model, folder / "checkpoint", seed=3)
    return load(folder / "checkpoint"), export_bundle(folder / "checkpoint", folder / "bundle", options)


@pytest.fixture(scope="module", params=list(KINDS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make(tmp_path_factory.mktemp(request.param), config(KINDS[request.param]))


@pytest.fixture(scope="module", params=ENCODERS)
def pair(request: pytest.FixtureRequest, exported: Exported) -> Pair:
    model, bundle = exported
    return model, Engine.load(bundle, encoder=request.param)


@pytest.fixture(scope="module")
def exported_trimmed(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """With windows that overlap, EAT's last, padded patch may reach further than Whisper's frames."""
    qformer = replace(preset("tiny").qformer, window=WindowConfig(17, 3, 1))
    return make(tmp_path_factory.mktemp("trimmed"), config(EAT, qformer=qformer, audio=AudioConfig(window="trimmed")))


@pytest.fixture(scope="module", params=ENCODERS)
def trimmed(request: pytest.FixtureRequest, exported_trimmed: Exported) -> Pair:
    model, bundle = exported_trimmed
    return model, Engine.load(bundle, encoder=request.param)


@pytest.mark.parametrize("seconds", [1.0, 2.2, 10.0, 12.3])
def test_greedy_tokens_are_pytorchs(pair: Pair, seconds: float) -> None:
    model, engine = pair
    pcm = noise(seconds)
    expected = model.generate(pcm, prompt="What is heard?", sample_rate=16_000, config=GREEDY)
    assert list(engine.generate(pcm, prompt="What is heard?", sample_rate=16_000, config=GREEDY).token_ids) == expected


@pytest.mark.parametrize("seconds", [1.0, 1.63, 2.2, 2.61, 10.0, 12.3, 30.0])
def test_embeddings_of_padded_patches_are_pytorchs(trimmed: Pair, seconds: float) -> None:
    model, engine = trimmed
    audio = load_audio(noise(seconds), 16_000)
    expected = model.encode(audio)[0].detach().numpy()
    encoder = engine.model.encoder
    found = encoder.encode(audio)
    assert len(found) == len(expected) == encoder.count(len(audio.pcm))
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, float(np.abs(expected).max()))


def test_a_batch_gives_what_each_recording_gives_alone(trimmed: Pair) -> None:
    model, _ = trimmed
    audios = [load_audio(noise(seconds), 16_000) for seconds in (2.61, 1.0, 5.3)]
    with torch.inference_mode():
        batch, single = model.encode_batch(audios), [model.encode(audio) for audio in audios]
    for found, alone in zip(batch, single, strict=True):
        assert found.shape == alone.shape
        assert (found - alone).abs().max() <= 1e-4 * max(1.0, float(alone.abs().max()))


def test_the_manifest_has_the_front_end(pair: Pair) -> None:
    model, engine = pair
    manifest, encoder = engine.bundle.manifest, model.config.audio_encoder
    assert manifest.fbank == (encoder.fbank if encoder else None)
    assert ("audio_encoder" in manifest.graphs) == (encoder is not None)


def test_int8_shows_an_error_within_the_budget(tmp_path: Path) -> None:
    options = ExportOptions(encoder_precision="int8")
    _, bundle = make(tmp_path, config(EAT), options)
    assert open_bundle(bundle).manifest.precision.audio_encoder == "int8"
    for stage in stages({"audio_encoder"}):
        assert 1e-4 < parity(bundle)["stages"][stage]["relative"] < options.parity_budget


def test_every_kind_has_a_graph_and_native_weights() -> None:
    assert set(BUILDERS) == {BEATS.kind, EAT.kind}
    native = {get_args(get_type_hints(encoder)["kind"])[0] for encoder in WRITERS}
    assert native == {"whisper", *BUILDERS}


def test_a_published_eat_becomes_a_bundle(tmp_path: Path) -> None:
    """From the parts on disk: referred to and copied, as fairseq's file and as a folder, they are one bundle."""
    state = published.published_state()
    whisper, llm = write_whisper(tmp_path / "whisper"), write_llm(tmp_path / "llm", dtype=torch.float32)
    sources = [
        published.write_pretrained(tmp_path / "eat.pt", state),
        published.write_folder(tmp_path / "eat", state),
    ]
    hashes = set()
    for number, (source, copy) in enumerate([(sources[0], False), (sources[0], True), (sources[1], False)]):
        checkpoint = tmp_path / f"checkpoint-{number}"
        report = format_assembly(assemble(checkpoint, whisper=whisper, audio_encoder=source, llm=llm, copy=copy))
        assert ("left out: 4 of eat's keys (decoder that pre-training predicts" in report) == (source.suffix == ".pt")
        assert open_checkpoint(checkpoint).config.audio_encoder == EAT
        bundle = export_bundle(checkpoint, tmp_path / f"bundle-{number}")
        files = open_bundle(bundle).manifest.files
        hashes.add(files["audio_encoder.onnx.data"].sha256)
    assert len(hashes) == 1


def test_a_model_with_eat_learns(tmp_path: Path) -> None:
    init_checkpoint(config(EAT), tmp_path / "checkpoint", seed=3)
    model = load(tmp_path / "checkpoint")
    loss = mean_loss(model, [Answer(load_audio(noise(1.5), 16_000), "What is heard?", "noise")])
    loss.backward()
    assert model.audio_encoder is not None
    for name, parameter in model.audio_encoder.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name
