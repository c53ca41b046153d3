"""Encoders that hear in blocks: who sees whom, padded batches, and training."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.config import AudioConfig, Block, BlockConfig, WindowConfig
from salmonrun.runtime.errors import ConfigError
from salmonrun.training.checkpoint import load
from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.recipe import load_recipe
from salmonrun.training.model.blocks import attended, draw_block
from salmonrun.training.model.config import load_config
from salmonrun.training.model.encoders.beats import BeatsEncoder
from salmonrun.training.model.salmonn import SalmonnModel
from salmonrun.training.model.whisper import WhisperEncoder
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from tests.helpers.losses import Answer, mean_loss
from tests.helpers.runs import logged, write_noises
from tests.helpers.streams import block_causal, noise

CPU = torch.device("cpu")
FRAMES = 200  # four seconds
BLOCKS = [Block(16, 16), Block(16, 40), Block(32, 16), Block(136, 8)]
CONVOLUTION = 64  # tokens before a block that BEATs' convolution hears, whatever the look-back


def reach(position: int, block: Block, layers: int) -> tuple[int, int]:
    """The first position that some layers bring to `position`, and the end of its block."""
    start = position // block.size * block.size
    first = start
    for _ in range(layers):
        first = max(0, first // block.size * block.size - block.lookback)
    return first, start + block.size


def disturbed(encode: Callable[[Tensor], Tensor], features: Tensor, where: slice) -> set[int]:
    """Positions of an encoder's output [1, T, dim] that features [1, N, bins] change when they change."""
    other = features.clone()
    other[:, where] += torch.randn_like(other[:, where])
    with torch.inference_mode():
        changed = (encode(features) != encode(other)).any(dim=2)[0]
    return set(changed.nonzero().flatten().tolist())


@pytest.fixture(scope="module")
def whisper(streaming_model: SalmonnModel) -> WhisperEncoder:
    return streaming_model.whisper


@pytest.fixture(scope="module")
def beats(streaming_model: SalmonnModel) -> BeatsEncoder:
    assert isinstance(streaming_model.audio_encoder, BeatsEncoder)
    return streaming_model.audio_encoder


# Who sees whom


@pytest.mark.parametrize("block", [None, *BLOCKS, Block(1, 1), Block(500, 8)], ids=str)
@pytest.mark.parametrize("counts", [None, (50, 37), (50, 1)])
def test_the_mask_is_its_definition(block: Block | None, counts: tuple[int, ...] | None) -> None:
    valid = None if counts is None else torch.arange(50) < torch.tensor(counts)[:, None]
    mask = attended(50, valid, block, CPU)
    if mask is None:
        assert block is None
        assert counts is None
        return
    for row, count in enumerate(counts or (50,)):
        for query in range(50):
            for key in range(50):
                seen = True
                if block:
                    first, end = reach(query, block, layers=1)
                    seen = first <= key < end
                expected = seen and key < count
                found = bool(mask.expand(-1, -1, 50, -1)[row, 0, query, key])
                if query < count:
                    assert found == expected
            assert mask.expand(-1, -1, 50, -1)[row, 0, query].any()  # a softmax over something


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("position", [0, 15, 16, 100, FRAMES - 1])
def test_whisper_hears_its_block_and_the_lookback(whisper: WhisperEncoder, block: Block, position: int) -> None:
    """And what the convolutions hear around them: two hops before the first frame, one behind the last."""
    mel = torch.randn(1, 2 * FRAMES, 80)
    first, end = reach(position, block, len(whisper.layers))

    def encode(mel: Tensor) -> Tensor:
        return whisper(mel.transpose(1, 2), block=block)

    assert position not in disturbed(encode, mel, slice(2 * end + 1, None))
    if 2 * end < 2 * FRAMES:
        assert end - 1 in disturbed(encode, mel, slice(2 * end, 2 * end + 1))
    if first > 0:
        assert position not in disturbed(encode, mel, slice(0, 2 * first - 2))
        assert position in disturbed(encode, mel, slice(2 * first - 2, 2 * first))
    last = min(end, FRAMES)
    assert position in disturbed(encode, mel, slice(2 * last - 2, 2 * last))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("position", [0, 15, 16, 100, FRAMES - 1])
def test_beats_hears_its_block_and_the_lookback(beats: BeatsEncoder, block: Block, position: int) -> None:
    """And the convolution's half kernel before them; nothing behind."""
    bank = torch.randn(1, 2 * FRAMES, 128)
    first, end = reach(position, block, len(beats.encoder.layers))

    def encode(bank: Tensor) -> Tensor:
        return beats(bank, block=block)

    assert position not in disturbed(encode, bank, slice(2 * end, None))
    last = min(end, FRAMES)
    assert position in disturbed(encode, bank, slice(2 * last - 16, 2 * last))
    heard = max(0, first - CONVOLUTION) // 8 * 8  # eight tokens to a patch of 16 frames
    if first > 0:
        assert position not in disturbed(encode, bank, slice(0, 2 * heard))
        assert position in disturbed(encode, bank, slice(2 * heard, 2 * heard + 16))


def test_one_block_for_all_is_no_block(streaming_model: SalmonnModel) -> None:
    audio = load_audio(noise(32_000), 16000)
    with torch.inference_mode():
        whole = streaming_model.encode(audio)
        assert torch.allclose(streaming_model.encode(audio, Block(1600, 8)), whole, atol=1e-5)
        assert not torch.allclose(streaming_model.encode(audio, Block(16, 16)), whole, atol=1e-2)


@pytest.mark.parametrize("block", [None, *BLOCKS], ids=str)
@pytest.mark.parametrize("with_beats", [True, False])
def test_padded_rows_are_as_alone(
    streaming_model: SalmonnModel, without_beats: SalmonnModel, block: Block | None, with_beats: bool
) -> None:
    model = streaming_model if with_beats else without_beats
    audios = [load_audio(noise(samples, samples), 16000, min_s=0.32) for samples in (1, 64_000, 23_456, 5120, 50_000)]
    with torch.inference_mode():
        together = model.encode_batch(audios, block)
        for audio, row in zip(audios, together, strict=True):
            alone = model.encode(audio, block)
            assert row.shape == alone.shape
            assert torch.allclose(row, alone, atol=2e-5)


@pytest.fixture(scope="module")
def without_beats(tmp_path_factory: pytest.TempPathFactory) -> SalmonnModel:
    folder = tmp_path_factory.mktemp("without-beats") / "checkpoint"
    init_checkpoint(block_causal(sounds=False), folder, seed=2)
    return load(folder)


# Training


def test_every_block_is_drawn_and_a_recording_at_once() -> None:
    config = BlockConfig((16, 32), (16, 160))
    torch.manual_seed(0)
    drawn = Counter(draw_block(config) for _ in range(600))
    assert set(drawn) == {None, *(Block(size, lookback) for size in (16, 32) for lookback in (16, 160))}
    assert 150 < drawn[None] < 250  # a third
    assert all(60 < count < 140 for block, count in drawn.items() if block)


def test_torchs_seed_repeats_the_draw() -> None:
    config = BlockConfig((16, 32, 64), (16, 160))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    once = [draw_block(config) for _ in range(40)]
    torch.set_rng_state(state)
    assert [draw_block(config) for _ in range(40)] == once
    torch.manual_seed(4)
    assert [draw_block(config) for _ in range(40)] != once


@pytest.mark.parametrize("block", [None, Block(16, 16), Block(32, 160)], ids=str)
def test_gradients_are_finite(streaming_checkpoint: Path, block: Block | None) -> None:
    """In a padded batch, too, one row of which ends blocks before the other."""
    model = load(streaming_checkpoint)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    audios = [load_audio(noise(samples, samples), 16000, min_s=0.32) for samples in (4000, 60_000)]
    torch.cat(model.encode_batch(audios, block), dim=1).square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in gradients} == {"whisper", "audio_encoder", "qformer"}
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert any(
        bool(gradient.any())
        for name, gradient in gradients.items()
        if name.startswith("audio_encoder.encoder.pos_conv")
    )


RECIPE = """
checkpoint: {checkpoint}
data:
  train:
    - annotation: {annotation}
run: {{out: {out}, steps: 3, batch_size: 2, lr: 1e-3, warmup_steps: 1, log_every: 1, save_every: 3, ctc_weight: 0.3}}
train: {{whisper: true, audio_encoder: true, qformer: true}}
augment: {{pause_p: 0.5, pause_s: 0.4}}
streaming:
  sizes: [136, 272]
  lookbacks: [136]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    config = preset("tiny")
    trimmed = replace(config, audio=replace(config.audio, window="trimmed", min_s=0.5))
    init_checkpoint(trimmed, tmp_path / "start")
    annotation = write_noises(tmp_path, ("one", "two three", "four"))
    return RECIPE.format(checkpoint=tmp_path / "start", annotation=annotation, out=tmp_path / "out")


def test_a_recipe_makes_a_checkpoint_that_hears_in_blocks(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe)
    final = finetune(load_recipe(tmp_path / "recipe.yaml"))
    stored = json.loads((final / "config.json").read_text())
    assert stored["streaming"] == {"sizes": [136, 272], "lookbacks": [136]}
    assert stored["audio"]["log_mel_max"] == 1.5
    assert load_config(final).streaming == BlockConfig((136, 272), (136,))
    assert all(np.isfinite(logged(tmp_path / "out", 3)))


def test_training_hears_what_was_drawn(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoders are given the block that was drawn; the loss of the first step is that of the model with it."""
    block = Block(16, 16)
    monkeypatch.setattr("salmonrun.training.finetuning.objective.draw_block", lambda config: block)
    (tmp_path / "recipe.yaml").write_text(recipe.replace("ctc_weight: 0.3", "ctc_weight: 0"))
    settings = ["run.steps=1", "run.save_every=1", "run.batch_size=3", "augment.pause_p=0"]
    final = finetune(load_recipe(tmp_path / "recipe.yaml", settings))
    model = load(tmp_path / "start")
    model.config = replace(load_config(final))
    prompt = model.prompts.tasks["asr"][0]
    answers = [
        Answer(model.load_audio(tmp_path / f"{i}.wav"), prompt, text)
        for i, text in enumerate(("one", "two three", "four"))
    ]
    losses = {}
    for name, heard in (("drawn", block), ("whole", None)):
        with torch.inference_mode():
            losses[name] = mean_loss(model, answers, heard).item()
    assert logged(tmp_path / "out", 1)[0] == pytest.approx(losses["drawn"], abs=1e-4)
    assert abs(losses["drawn"] - losses["whole"]) > 1e-3


# Settings


@pytest.mark.parametrize("name", ["sizes", "lookbacks"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((), "expected numbers of frames, 1 to 65536, ascending"),
        ((32, 16), "ascending"),
        ((16, 16), "ascending"),
        ((0, 16), "1 to 65536"),
        ((-16,), "1 to 65536"),
        ((16, 20), "has 20; expected multiples of 8 frames"),
    ],
)
def test_blocks_that_cannot_be_are_refused(name: str, values: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"streaming\.{name} .*{message}"):
        BlockConfig(**({"sizes": (16,), "lookbacks": (16,)} | {name: values}))


TRIMMED = AudioConfig(window="trimmed", log_mel_max=1.5)


@pytest.mark.parametrize(
    ("audio", "window", "message"),
    [
        (TRIMMED, WindowConfig(16, 8), "windows side by side, but their stride is 8"),
        (TRIMMED, WindowConfig(17, 17), "streaming.sizes has 16, which is no multiple of the 17 window frames"),
        (replace(TRIMMED, window="padded"), WindowConfig(16, 16), "needs audio.window 'trimmed' and audio.log_mel_max"),
        (replace(TRIMMED, log_mel_max=None), WindowConfig(16, 16), "and audio.log_mel_max, e.g. 1.5"),
    ],
)
def test_a_model_that_cannot_hear_in_blocks_is_refused(audio: AudioConfig, window: WindowConfig, message: str) -> None:
    blocks = BlockConfig((16, 32), (16,))
    with pytest.raises(ConfigError, match=message):
        blocks.check(audio, window)
    config = preset("tiny")
    with pytest.raises(ConfigError, match=message):
        replace(config, audio=audio, qformer=replace(config.qformer, window=window), streaming=blocks)


def test_blocks_are_not_exported_padded(streaming_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"streaming needs audio\.window 'trimmed'"):
        export_bundle(streaming_checkpoint, tmp_path / "bundle", ExportOptions(window="padded"))
    assert not (tmp_path / "bundle").exists()
