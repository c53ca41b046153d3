"""BEATs against the golden case, and against a reference written from its formulae."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.config import FbankConfig
from salmonrun.runtime.errors import CheckpointError
from salmonrun.runtime.features import fbank
from salmonrun.training.foreign.part_files import read_audio_encoder
from salmonrun.training.model.blocks import valid_positions
from salmonrun.training.model.encoders.beats import BeatsConfig, BeatsEncoder, relative_buckets
from salmonrun.training.model.features import count_tokens
from salmonrun.training.tensors import load_strict

TOLERANCE = 1e-4
STABILISER = 32.0  # the published attention divides and multiplies the scores by this

PUBLISHED_CFG = {
    "input_patch_size": 16,
    "conv_bias": False,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "relative_position_embedding": True,
    "num_buckets": 320,
    "max_distance": 800,
    "gru_rel_pos": True,
    "encoder_layerdrop": 0.05,
}


def published_cfg(dim: int = 32, layers: int = 2, heads: int = 2, ffn: int = 48, **changes: Any) -> dict[str, Any]:
    sizes = {
        "embed_dim": 24,
        "encoder_layers": layers,
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": ffn,
        "encoder_attention_heads": heads,
    }
    return PUBLISHED_CFG | sizes | changes


def published_state(cfg: dict[str, Any], seed: int = 0, finetuned: bool = False) -> dict[str, Tensor]:
    """Random weights under the published names."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, fan: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) / math.sqrt(fan)

    dim, ffn, heads, patch = (
        cfg[key] for key in ("encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads", "embed_dim")
    )
    state = {
        "patch_embedding.weight": draw(patch, 1, 16, 16, fan=64.0),
        "layer_norm.weight": 1 + draw(patch, fan=16),
        "layer_norm.bias": draw(patch, fan=16),
        "post_extract_proj.weight": draw(dim, patch, fan=patch),
        "post_extract_proj.bias": draw(dim, fan=16),
        "encoder.pos_conv.0.bias": draw(dim, fan=16),
        "encoder.pos_conv.0.weight_g": 0.5 + torch.rand(1, 1, cfg["conv_pos"], generator=generator),
        "encoder.pos_conv.0.weight_v": draw(dim, dim // cfg["conv_pos_groups"], cfg["conv_pos"]),
        "encoder.layer_norm.weight": 1 + draw(dim, fan=16),
        "encoder.layer_norm.bias": draw(dim, fan=16),
    }
    table = draw(cfg["num_buckets"], heads)
    for i in range(cfg["encoder_layers"]):
        prefix = f"encoder.layers.{i}."
        for name in "kvq":
            state[f"{prefix}self_attn.{name}_proj.weight"] = draw(dim, dim, fan=dim)
            state[f"{prefix}self_attn.{name}_proj.bias"] = draw(dim, fan=16)
        state |= {
            f"{prefix}self_attn.out_proj.weight": draw(dim, dim, fan=dim),
            f"{prefix}self_attn.out_proj.bias": draw(dim, fan=16),
            f"{prefix}self_attn.grep_linear.weight": draw(8, dim // heads, fan=dim / heads),
            f"{prefix}self_attn.grep_linear.bias": draw(8, fan=16),
            f"{prefix}self_attn.grep_a": 1 + draw(1, heads, 1, 1, fan=16),
            f"{prefix}self_attn.relative_attention_bias.weight": table,
            f"{prefix}self_attn_layer_norm.weight": 1 + draw(dim, fan=16),
            f"{prefix}self_attn_layer_norm.bias": draw(dim, fan=16),
            f"{prefix}fc1.weight": draw(ffn, dim, fan=dim),
            f"{prefix}fc1.bias": draw(ffn, fan=16),
            f"{prefix}fc2.weight": draw(dim, ffn, fan=ffn),
            f"{prefix}fc2.bias": draw(dim, fan=16),
            f"{prefix}final_layer_norm.weight": 1 + draw(dim, fan=16),
            f"{prefix}final_layer_norm.bias": draw(dim, fan=16),
        }
    if finetuned:
        state |= {"predictor.weight": draw(527, dim), "predictor.bias": draw(527)}
    return state


def reference_beats(cfg: dict[str, Any], state: dict[str, Tensor], bank: Tensor) -> Tensor:
    """[F, 128] -> [8 * (F // 16), dim], straight from the formulae."""
    x = torch.stack(
        [
            (state["patch_embedding.weight"][:, 0] * bank[16 * t : 16 * t + 16, 16 * f : 16 * f + 16]).sum((1, 2))
            for t in range(len(bank) // 16)
            for f in range(8)
        ]
    )
    x = layer_norm(x, state, "layer_norm")
    x = linear(x, state, "post_extract_proj")
    dim = x.shape[1]
    conv = torch.nn.Conv1d(dim, dim, cfg["conv_pos"], padding=64, groups=cfg["conv_pos_groups"])
    conv = torch.nn.utils.weight_norm(conv, name="weight", dim=2)
    conv.load_state_dict(
        {name: state[f"encoder.pos_conv.0.{name}"] for name in ("bias", "weight_g", "weight_v")}, strict=True
    )
    x = x + F.gelu(conv(x.T[None])[0, :, :-1].T)
    x = layer_norm(x, state, "encoder.layer_norm")
    alpha = (2 * cfg["encoder_layers"]) ** 0.25
    bias = reference_bias(cfg, state["encoder.layers.0.self_attn.relative_attention_bias.weight"], len(x))
    for i in range(cfg["encoder_layers"]):
        prefix = f"encoder.layers.{i}."
        attended = reference_attention(cfg, state, f"{prefix}self_attn.", x, bias)
        x = layer_norm(alpha * x + attended, state, f"{prefix}self_attn_layer_norm")
        h = linear(F.gelu(linear(x, state, f"{prefix}fc1")), state, f"{prefix}fc2")
        x = layer_norm(alpha * x + h, state, f"{prefix}final_layer_norm")
    return x


def reference_attention(cfg: dict[str, Any], state: dict[str, Tensor], prefix: str, x: Tensor, bias: Tensor) -> Tensor:
    heads = cfg["encoder_attention_heads"]
    head_dim = x.shape[1] // heads
    q, k, v = (linear(x, state, f"{prefix}{name}_proj") for name in "qkv")
    outputs = []
    for h in range(heads):
        own = slice(h * head_dim, (h + 1) * head_dim)
        scores = (q[:, own] * head_dim**-0.5 / STABILISER) @ k[:, own].T
        scores = (scores - scores.max(dim=1, keepdim=True).values) * STABILISER
        gates = linear(q[:, own], state, f"{prefix}grep_linear").view(len(x), 2, 4).sum(-1)
        gates = torch.sigmoid(gates)
        gate = gates[:, 0] * (gates[:, 1] * state[f"{prefix}grep_a"][0, h, 0, 0] - 1) + 2
        outputs.append(torch.softmax(scores + gate[:, None] * bias[h], dim=1) @ v[:, own])
    return linear(torch.cat(outputs, dim=1), state, f"{prefix}out_proj")


def reference_bias(cfg: dict[str, Any], table: Tensor, length: int) -> Tensor:
    """[heads, length (query), length (key)]."""
    by_distance = {d: table[reference_bucket(d, cfg)] for d in range(-length + 1, length)}
    rows = [torch.stack([by_distance[key - query] for key in range(length)]) for query in range(length)]
    return torch.stack(rows).permute(2, 0, 1)


def reference_bucket(relative: int, cfg: dict[str, Any]) -> int:
    half = cfg["num_buckets"] // 2
    exact = half // 2
    distance = abs(relative)
    if distance >= exact:
        far = torch.log(torch.tensor(float(distance)) / exact) / math.log(cfg["max_distance"] / exact)
        distance = min(half - 1, exact + int(far * (half - exact)))
    return distance + (half if relative > 0 else 0)


def linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def load_published(path: Path, cfg: dict[str, Any], state: dict[str, Tensor]) -> BeatsEncoder:
    torch.save({"cfg": cfg, "model": state}, path)
    config, tensors = read_audio_encoder(path)
    assert isinstance(config, BeatsConfig)
    encoder = BeatsEncoder(config).eval()
    load_strict(dict(encoder.named_parameters()), tensors, "beats")
    return encoder


def random_bank(frames: int, seed: int = 1) -> Tensor:
    return torch.randn(frames, 128, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_golden_features(golden: Path) -> None:
    expected = np.load(golden / "beats" / "expected.npz")
    config, tensors = read_audio_encoder(golden / "beats" / "beats.pt")
    assert isinstance(config, BeatsConfig)
    encoder = BeatsEncoder(config).eval()
    load_strict(dict(encoder.named_parameters()), tensors, "beats")
    got = encoder(torch.from_numpy(expected["fbank"])[None])[0].numpy()
    assert got.shape == (64, 48)
    assert np.abs(got - expected["features"]).max() <= 2e-4


@torch.inference_mode()
def test_golden_features_from_the_recording(golden: Path, speech: Path) -> None:
    expected = np.load(golden / "beats" / "expected.npz")
    bank = fbank(load_audio(speech).pcm, FbankConfig())
    assert np.abs(bank - expected["fbank"]).max() <= 1e-3
    config, tensors = read_audio_encoder(golden / "beats" / "beats.pt")
    assert isinstance(config, BeatsConfig)
    encoder = BeatsEncoder(config).eval()
    load_strict(dict(encoder.named_parameters()), tensors, "beats")
    assert np.abs(encoder(torch.from_numpy(bank)[None])[0].numpy() - expected["features"]).max() <= 5e-4


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("cfg", "frames"),
    [
        (published_cfg(), 98),  # 48 tokens: near positions only; a tail of 2 frames is dropped
        (published_cfg(dim=48, layers=3, heads=3, ffn=64), 340),  # logarithmic buckets
        (published_cfg(dim=64, layers=1, heads=4, ffn=32), 1700),  # 848 tokens: farther than max_distance
        (published_cfg(dim=32, layers=4, heads=1, ffn=40, num_buckets=32, max_distance=128), 340),
    ],
)
def test_equals_the_formulae(tmp_path: Path, cfg: dict[str, Any], frames: int) -> None:
    state, bank = published_state(cfg), random_bank(frames)
    got = load_published(tmp_path / "beats.pt", cfg, state)(bank[None])[0]
    expected = reference_beats(cfg, state, bank)
    assert got.shape == expected.shape == (8 * (frames // 16), cfg["encoder_embed_dim"])
    assert (got - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(320, 800), (320, 1280), (32, 128)])
def test_buckets(num_buckets: int, max_distance: int) -> None:
    config = BeatsConfig(num_buckets=num_buckets, max_distance=max_distance)
    cfg = {"num_buckets": num_buckets, "max_distance": max_distance}
    distances = list(range(-1600, 1601))
    expected = [reference_bucket(distance, cfg) for distance in distances]
    assert relative_buckets(torch.tensor(distances), config).tolist() == expected


@torch.inference_mode()
def test_a_padded_batch_gives_what_each_clip_gives_alone(tmp_path: Path) -> None:
    cfg = published_cfg(dim=48, heads=3)
    encoder = load_published(tmp_path / "beats.pt", cfg, published_state(cfg))
    banks = [random_bank(frames, seed=frames) for frames in (130, 98, 16, 47)]
    lengths = torch.tensor([len(bank) for bank in banks])
    states = encoder(torch.nn.utils.rnn.pad_sequence(banks, batch_first=True, padding_value=3.0), lengths)
    valid = valid_positions(count_tokens(lengths, FbankConfig()), states.shape[1])
    for bank, row, own in zip(banks, states, valid, strict=True):
        alone = encoder(bank[None])[0]
        assert own.sum() == len(alone) == 8 * (len(bank) // 16)
        assert (row[own] - alone).abs().max() <= 1e-5
        assert not row[~own].any()


def test_both_weight_norm_namings_are_read_alike(tmp_path: Path) -> None:
    cfg = published_cfg()
    state = published_state(cfg)
    old = load_published(tmp_path / "old.pt", cfg, state)
    renamed = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for name, value in state.items()
    }
    assert renamed.keys() != state.keys()
    new = load_published(tmp_path / "new.pt", cfg, renamed)
    assert all(map(torch.equal, old.parameters(), new.parameters()))


def test_a_file_without_weight_norm_is_refused(tmp_path: Path) -> None:
    cfg = published_cfg()
    state = published_state(cfg)
    del state["encoder.pos_conv.0.weight_g"]
    with pytest.raises(CheckpointError, match=r"pos_conv\.0.*weight_g"):
        load_published(tmp_path / "beats.pt", cfg, state)


def test_the_classifier_of_a_finetuned_file_is_left_out(tmp_path: Path) -> None:
    cfg = published_cfg()
    plain = load_published(tmp_path / "plain.pt", cfg, published_state(cfg))
    tuned_cfg = cfg | {"finetuned_model": True, "predictor_class": 527, "predictor_dropout": 0.0}
    tuned = load_published(tmp_path / "tuned.pt", tuned_cfg, published_state(cfg, finetuned=True))
    assert all(map(torch.equal, plain.parameters(), tuned.parameters()))


def test_copies_of_the_bias_table_may_be_missing(tmp_path: Path) -> None:
    """The files of some tools store the shared table once."""
    cfg = published_cfg(layers=3)
    state = published_state(cfg)
    for i in (1, 2):
        del state[f"encoder.layers.{i}.self_attn.relative_attention_bias.weight"]
    once = load_published(tmp_path / "once.pt", cfg, state)
    assert torch.equal(
        once.encoder.relative_attention_bias.weight, state["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_norm_first", True),
        ("deep_norm", False),
        ("relative_position_embedding", False),
        ("gru_rel_pos", False),
        ("conv_bias", True),
        ("activation_fn", "relu"),
    ],
)
def test_switches_that_change_the_maths_are_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    cfg = published_cfg() | {key: value}
    with pytest.raises(CheckpointError, match=rf"cfg\.{key} is {value!r}"):
        load_published(tmp_path / "beats.pt", cfg, published_state(published_cfg()))


@pytest.mark.parametrize("key", ["encoder_embed_dim", "input_patch_size", "conv_pos", "max_distance"])
def test_a_missing_size_is_named(tmp_path: Path, key: str) -> None:
    cfg = published_cfg()
    state = published_state(cfg)
    del cfg[key]
    with pytest.raises(CheckpointError, match=key):
        load_published(tmp_path / "beats.pt", cfg, state)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    cfg = published_cfg()
    with pytest.raises(CheckpointError, match=r"encoder\.layers\.0\.adapter\.weight"):
        load_published(
            tmp_path / "beats.pt",
            cfg,
            published_state(cfg) | {"encoder.layers.0.adapter.weight": torch.zeros(2)},
        )


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt is no audio encoder that is known; expected BEATs or EAT"):
        read_audio_encoder(tmp_path / "other.pt")
