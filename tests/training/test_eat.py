"""EAT against a reference written from its formulae, and its published layouts, which all give the same encoder."""

import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from salmonrun.runtime.config import Block, FbankConfig
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.foreign.part_files import read_audio_encoder
from salmonrun.training.model.config import ModelConfig, load_config, save_config
from salmonrun.training.model.encoders.eat import EatConfig, EatEncoder, rename, sincos_positions
from salmonrun.training.model.encoders.published import Published
from salmonrun.training.starting.presets import preset
from salmonrun.training.tensors import lazy, load_strict
from tests.helpers import eat as published
from tests.helpers.eat import MODALITY, MODEL, published_positions, published_state

CONFIG = EatConfig(dim=48, layers=2, heads=3, ffn=64, max_patches=200)
LARGE = EatConfig(dim=1024, layers=24, heads=16, ffn=4096)


def load_published(path: Path) -> EatEncoder:
    config, tensors = read_audio_encoder(path)
    assert isinstance(config, EatConfig)
    encoder = config.build()
    load_strict(encoder.state_dict(), tensors, "audio_encoder")
    return encoder.eval()


def random_bank(frames: int, seed: int = 0) -> Tensor:
    return torch.randn(frames, 128, generator=torch.Generator().manual_seed(seed))


def reference(state: dict[str, Tensor], fbank: Tensor, heads: int) -> Tensor:
    """The published encoder, in float64, on one filter bank [F, 128]: [8 * (F // 16), dim] (models/modules.py)."""
    w = {name: value.double() for name, value in state.items()}
    dim = w[f"{MODALITY}extra_tokens"].shape[-1]

    def layer_norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    kernel, bias = w[f"{MODALITY}local_encoder.proj.weight"].flatten(1), w[f"{MODALITY}local_encoder.proj.bias"]
    steps = len(fbank) // 16
    patches = fbank.double()[: 16 * steps].reshape(steps, 16, 8, 16).permute(0, 2, 1, 3).reshape(-1, 256)
    x = patches @ kernel.T + bias + w[f"{MODALITY}fixed_positional_encoder.positions"][0, : 8 * steps]
    x = layer_norm(torch.cat([w[f"{MODALITY}extra_tokens"][0], x]), f"{MODALITY}context_encoder.norm")
    for i in range(sum(name.endswith("attn.qkv.weight") for name in w)):
        qkv = dense(x, f"blocks.{i}.attn.qkv").reshape(len(x), 3, heads, dim // heads)
        heard = []
        for head in range(heads):
            q, k, v = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
            weights = torch.exp(q @ k.T / math.sqrt(dim // heads))
            heard.append(weights / weights.sum(-1, keepdim=True) @ v)
        x = layer_norm(x + dense(torch.cat(heard, dim=-1), f"blocks.{i}.attn.proj"), f"blocks.{i}.norm1")
        h = dense(x, f"blocks.{i}.mlp.fc1")
        h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
        x = layer_norm(x + dense(h, f"blocks.{i}.mlp.fc2"), f"blocks.{i}.norm2")
    return x[1:]


@pytest.mark.parametrize("frames", [16, 47, 1024, 3008])
@torch.inference_mode()
def test_the_encoder_is_the_formulae(tmp_path: Path, frames: int) -> None:
    state = published_state()
    encoder = load_published(published.write_pretrained(tmp_path / "eat.pt", state))
    bank = random_bank(frames)
    expected = reference(state, bank, heads=3)
    assert expected.shape == (8 * (frames // 16), 48)
    assert (encoder(bank[None])[0] - expected).abs().max() <= 2e-5


@torch.inference_mode()
def test_every_tensor_shows_in_the_output(tmp_path: Path) -> None:
    encoder = load_published(published.write_pretrained(tmp_path / "eat.pt", published_state()))
    bank = random_bank(64)[None]
    plain = encoder(bank)
    for name, tensor in encoder.state_dict().items():
        kept = tensor.clone()
        tensor += 0.1 * torch.randn(tensor.shape)
        assert not torch.allclose(encoder(bank), plain, atol=1e-4), name
        tensor.copy_(kept)


def test_positions_are_the_published_tables() -> None:
    assert (sincos_positions(768, 8, 768) - published_positions(768, 768)).abs().max() <= 1e-6
    assert EatConfig().longest_s == pytest.approx(122.88)


@torch.inference_mode()
def test_a_padded_batch_gives_what_each_clip_gives_alone(tmp_path: Path) -> None:
    encoder = load_published(published.write_folder(tmp_path / "eat", published_state()))
    banks = [random_bank(frames, seed=frames) for frames in (128, 96, 16)]
    lengths = torch.tensor([len(bank) for bank in banks])
    states = encoder(torch.nn.utils.rnn.pad_sequence(banks, batch_first=True, padding_value=3.0), lengths)
    for bank, row in zip(banks, states, strict=True):
        alone = encoder(bank[None])[0]
        assert len(alone) == len(bank) // 2
        assert (row[: len(alone)] - alone).abs().max() <= 1e-5
        assert not row[len(alone) :].any()


def test_all_published_layouts_are_the_same_encoder(tmp_path: Path) -> None:
    state = published_state()
    files = [
        published.write_pretrained(tmp_path / "pretrained.pt", state),
        published.write_pretrained(tmp_path / "plain.pt", state, as_is=True),
        published.write_fine_tuned(tmp_path / "fine-tuned.pt", state),
        published.write_folder(tmp_path / "pretrained", state),
        published.write_folder(tmp_path / "fine-tuned", state, classifier=True, model_variant="finetune"),
    ]
    read = [read_audio_encoder(path) for path in files]
    first = {name: get() for name, get in read[0][1].items()}
    assert set(first) == set(CONFIG.build().state_dict())
    for config, tensors in read:
        assert config == CONFIG
        assert set(tensors) == set(first)
        assert all(torch.equal(get(), first[name]) for name, get in tensors.items())


def test_half_precision_is_kept_as_it_is(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in published_state().items()}
    encoder = load_published(published.write_pretrained(tmp_path / "eat.pt", state))
    assert torch.equal(encoder.positions, state[f"{MODALITY}fixed_positional_encoder.positions"].float())


def test_sizes_are_the_files(tmp_path: Path) -> None:
    state = published_state(dim=64, layers=3, ffn=80)
    config, _ = read_audio_encoder(published.write_folder(tmp_path / "eat", state, num_heads=4))
    assert config == EatConfig(dim=64, layers=3, heads=4, ffn=80, max_patches=200)


def test_eat_large_has_the_published_size() -> None:
    with torch.device("meta"):
        encoder = LARGE.build()
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    assert parameters == 24 * 12_596_224 + (256 + 1) * 1024 + 3 * 1024


def test_what_is_left_out_has_a_reason() -> None:
    state = published_state() | {"fc_norm.weight": torch.ones(1), "head.bias": torch.ones(1)}
    tensors, leftovers = rename(Published(Path("eat.pt"), {}, lazy(state), ("_ema",)))
    assert set(tensors) == set(CONFIG.build().state_dict())
    assert set(leftovers) == {*state, "_ema"} - set(published.encoder_names(published_state()))
    assert leftovers["_ema"] == "teacher of the pre-training"
    assert leftovers["head.bias"] == "classifier of the fine-tuning"
    with pytest.raises(CheckpointError, match="1 keys are not known: scaler"):
        rename(Published(Path("eat.pt"), {}, lazy(state), ("scaler",)))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("blocks.1.norm2.bias", None, r"1 tensors missing \(blocks\.1\.norm2\.bias\)"),
        (f"{MODALITY}extra_tokens", None, r"missing \(cls_token\)"),
        (f"{MODALITY}local_encoder.proj.weight", None, r"no tensor for patch_embedding\.weight"),
        ("blocks.0.mlp.fc1.weight", None, r"no tensor for blocks\.0\.mlp\.fc1\.weight"),
        (f"{MODALITY}alibi_scale", torch.ones(1), r"1 keys are not known: modality_encoders\.IMAGE\.alibi_scale"),
        ("norm.weight", torch.ones(48), r"not known: norm\.weight"),
        ("blocks.0.attn.logit_scale", torch.ones(48), r"not known: blocks\.0\.attn\.logit_scale"),
        ("model.blocks.0.norm1.bias", torch.ones(48), r"blocks\.0\.norm1\.bias twice"),
        (
            "blocks.1.attn.qkv.weight",
            torch.ones(48, 48),
            r"attn\.qkv\.weight has shape \[48, 48\], expected \[144, 48\]",
        ),
        ("blocks.1.norm1.weight", torch.ones(48, dtype=torch.int64), r"norm1\.weight has dtype torch\.int64"),
    ],
)
def test_keys_that_do_not_fit_are_named(tmp_path: Path, name: str, value: Tensor | None, message: str) -> None:
    state = published_state()
    state = state | {name: value} if value is not None else {key: old for key, old in state.items() if key != name}
    with pytest.raises(CheckpointError, match=message):
        load_published(published.write_pretrained(tmp_path / "eat.pt", state))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_norm_first": True}, r"layer_norm_first is True; only False is supported"),
        ({"norm_eps": 1e-5}, r"norm_eps is 1e-05"),
        ({"num_heads": None}, r"no integer 'num_heads'"),
        ({"modalities": {"image": {"use_alibi_encoder": True}}}, r"use_alibi_encoder is True"),
        ({"modalities": {"audio": {}}}, r"cfg has no model with modalities\.image"),
    ],
)
def test_other_maths_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = published.write_pretrained(tmp_path / "eat.pt", published_state(), MODEL | changes)
    with pytest.raises(CheckpointError, match=message):
        load_published(path)


def test_pictures_are_no_sounds(tmp_path: Path) -> None:
    folder = published.write_folder(tmp_path / "eat", published_state(), in_chans=3)
    with pytest.raises(CheckpointError, match=r"in_chans is 3; only 1 is supported"):
        load_published(folder)


class Attack:
    """What a pickle can do where it may."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return shutil.copyfile, (__file__, str(self.path))


@pytest.mark.parametrize("place", ["cfg", "extra_state"])
def test_a_file_that_needs_more_is_refused_and_nothing_of_it_runs(tmp_path: Path, place: str) -> None:
    content = {"cfg": {"model": MODEL}, "model": published_state(), place: {"value": Attack(tmp_path / "copy")}}
    torch.save(content, tmp_path / "eat.pt")
    with pytest.raises(CheckpointError, match=r"weights_only=True: Unsupported global: GLOBAL shutil\.copyfile"):
        read_audio_encoder(tmp_path / "eat.pt")
    assert not (tmp_path / "copy").exists()


def test_stand_ins_are_for_one_file_only(tmp_path: Path) -> None:
    path = published.write_pretrained(tmp_path / "eat.pt", published_state())
    read_audio_encoder(path)
    with pytest.raises(pickle.UnpicklingError, match="omegaconf"):
        torch.load(path, weights_only=True)


# In a model


def model_config(**changes: Any) -> ModelConfig:
    return replace(preset("tiny"), audio_encoder=CONFIG, **changes)


def test_eat_does_not_hear_in_blocks() -> None:
    streaming = preset("v3-turbo-llama-1b-streaming")
    with pytest.raises(ConfigError, match=r"streaming needs encoders that can hear in blocks, which 'eat' cannot"):
        replace(streaming, audio_encoder=EatConfig())
    with pytest.raises(ConfigError, match="EAT cannot hear in blocks"):
        CONFIG.build()(random_bank(64)[None], None, Block(16, 16))


def test_audio_longer_than_the_positions_is_refused() -> None:
    short = replace(CONFIG, max_patches=64)
    with pytest.raises(ConfigError, match=r"audio\.max_s is 30, but the audio encoder has positions for 10\.24 s"):
        replace(preset("tiny"), audio_encoder=short)


@pytest.mark.parametrize(
    ("changes", "message"), [({"heads": 5}, "not a multiple"), ({"fbank": FbankConfig(patch_frames=8)}, "patches of")]
)
def test_sizes_that_make_no_encoder_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)


def test_the_kind_is_read_from_the_config(tmp_path: Path) -> None:
    for config in (model_config(), preset("tiny"), replace(preset("tiny"), audio_encoder=None)):
        save_config(config, tmp_path)
        assert load_config(tmp_path) == config
    text = (
        (tmp_path / "config.json").read_text().replace('"audio_encoder": null', '"audio_encoder": {"kind": "ced"}', 1)
    )
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"audio_encoder: expected an object whose kind is 'beats' or 'eat'"):
        load_config(tmp_path)
