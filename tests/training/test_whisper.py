"""Our Whisper encoder against transformers', and OpenAI's file format against transformers'."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import WhisperConfig as HfConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder as HfEncoder
from transformers.models.whisper.modeling_whisper import sinusoids as hf_sinusoids

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.foreign.part_files import read_whisper
from salmonrun.training.model.config import WhisperConfig
from salmonrun.training.model.whisper import WhisperEncoder, sinusoids
from salmonrun.training.tensors import LazyTensors, lazy, load_strict

TOLERANCE = 1e-4
SIZES = [
    WhisperConfig(d_model=32, layers=1, heads=2, ffn=64, n_mels=80),
    WhisperConfig(d_model=48, layers=3, heads=3, ffn=96, n_mels=128),
    WhisperConfig(d_model=64, layers=2, heads=1, ffn=256, n_mels=80),
]


def theirs(config: WhisperConfig, seed: int = 0) -> HfEncoder:
    """transformers' encoder, its weights drawn so that layers, biases and norms all matter."""
    torch.manual_seed(seed)
    encoder = HfEncoder(
        HfConfig(
            d_model=config.d_model,
            encoder_layers=config.layers,
            encoder_attention_heads=config.heads,
            encoder_ffn_dim=config.ffn,
            num_mel_bins=config.n_mels,
            max_source_positions=config.max_frames,
            dropout=0.0,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "embed_positions" not in name:
                scale = 1.0 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn_like(parameter) * scale)
    return encoder


def ours(config: WhisperConfig, tensors: LazyTensors) -> WhisperEncoder:
    encoder = WhisperEncoder(config).eval()
    load_strict(dict(encoder.named_parameters()), tensors, "whisper")
    return encoder


def mel(config: WhisperConfig, frames: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, config.n_mels, frames, generator=torch.Generator().manual_seed(frames))


@torch.inference_mode()
@pytest.mark.parametrize("config", SIZES, ids=str)
def test_equals_transformers_on_30_seconds(config: WhisperConfig) -> None:
    reference = theirs(config)
    log_mel = mel(config, 3000)
    expected = reference(log_mel).last_hidden_state
    got = ours(config, lazy(reference.state_dict()))(log_mel)
    assert got.shape == (1, 1500, config.d_model)
    assert (got - expected).abs().max() <= TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 17, 400])
@pytest.mark.parametrize("config", SIZES, ids=str)
def test_shorter_windows_equal_transformers_without_its_length_check(config: WhisperConfig, frames: int) -> None:
    reference = theirs(config)
    state = dict(reference.state_dict())
    reference.config.max_source_positions = frames  # all its length check looks at
    reference.embed_positions = torch.nn.Embedding.from_pretrained(state["embed_positions.weight"][:frames])
    log_mel = mel(config, 2 * frames, batch=2)
    got = ours(config, lazy(state))(log_mel)
    assert got.shape == (2, frames, config.d_model)
    assert (got - reference(log_mel).last_hidden_state).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("length", "channels"), [(1500, 1280), (1500, 64), (7, 6)])
def test_sinusoids_equal_transformers(length: int, channels: int) -> None:
    assert torch.equal(sinusoids(length, channels), hf_sinusoids(length, channels))


def hf_folder(folder: Path, config: WhisperConfig, encoder: HfEncoder, prefix: str = "model.encoder.") -> Path:
    """A published transformers folder: the decoder's tensors are there too."""
    folder.mkdir()
    raw = {
        "model_type": "whisper",
        "d_model": config.d_model,
        "encoder_layers": config.layers,
        "encoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.ffn,
        "num_mel_bins": config.n_mels,
        "max_source_positions": config.max_frames,
        "decoder_layers": 1,
    }
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = {f"{prefix}{name}": value.contiguous() for name, value in encoder.state_dict().items()}
    tensors[prefix.replace("encoder", "decoder") + "embed_tokens.weight"] = torch.zeros(3, config.d_model)
    save_file(tensors, folder / "model.safetensors")
    return folder


def openai_file(path: Path, config: WhisperConfig, encoder: HfEncoder) -> Path:
    """The layout of openai/whisper's .pt files, whose names are listed one by one."""
    hf = encoder.state_dict()
    state = {
        "encoder.positional_embedding": hf["embed_positions.weight"],
        "encoder.conv1.weight": hf["conv1.weight"],
        "encoder.conv1.bias": hf["conv1.bias"],
        "encoder.conv2.weight": hf["conv2.weight"],
        "encoder.conv2.bias": hf["conv2.bias"],
        "encoder.ln_post.weight": hf["layer_norm.weight"],
        "encoder.ln_post.bias": hf["layer_norm.bias"],
        "decoder.token_embedding.weight": torch.zeros(3, config.d_model),
        "decoder.positional_embedding": torch.zeros(4, config.d_model),
        "decoder.blocks.0.attn.query.weight": torch.zeros(config.d_model, config.d_model),
    }
    for i in range(config.layers):
        block, layer = f"encoder.blocks.{i}.", f"layers.{i}."
        state |= {
            f"{block}attn.query.weight": hf[f"{layer}self_attn.q_proj.weight"],
            f"{block}attn.query.bias": hf[f"{layer}self_attn.q_proj.bias"],
            f"{block}attn.key.weight": hf[f"{layer}self_attn.k_proj.weight"],
            f"{block}attn.value.weight": hf[f"{layer}self_attn.v_proj.weight"],
            f"{block}attn.value.bias": hf[f"{layer}self_attn.v_proj.bias"],
            f"{block}attn.out.weight": hf[f"{layer}self_attn.out_proj.weight"],
            f"{block}attn.out.bias": hf[f"{layer}self_attn.out_proj.bias"],
            f"{block}attn_ln.weight": hf[f"{layer}self_attn_layer_norm.weight"],
            f"{block}attn_ln.bias": hf[f"{layer}self_attn_layer_norm.bias"],
            f"{block}mlp.0.weight": hf[f"{layer}fc1.weight"],
            f"{block}mlp.0.bias": hf[f"{layer}fc1.bias"],
            f"{block}mlp.2.weight": hf[f"{layer}fc2.weight"],
            f"{block}mlp.2.bias": hf[f"{layer}fc2.bias"],
            f"{block}mlp_ln.weight": hf[f"{layer}final_layer_norm.weight"],
            f"{block}mlp_ln.bias": hf[f"{layer}final_layer_norm.bias"],
        }
    dims = {
        "n_mels": config.n_mels,
        "n_audio_ctx": config.max_frames,
        "n_audio_state": config.d_model,
        "n_audio_head": config.heads,
        "n_audio_layer": config.layers,
        "n_vocab": 3,
        "n_text_ctx": 4,
        "n_text_state": config.d_model,
        "n_text_head": config.heads,
        "n_text_layer": 1,
    }
    torch.save({"dims": dims, "model_state_dict": state}, path)
    return path


@torch.inference_mode()
@pytest.mark.parametrize("prefix", ["model.encoder.", "encoder."])
def test_openai_file_and_transformers_folder_give_the_same_outputs(tmp_path: Path, prefix: str) -> None:
    config = WhisperConfig(d_model=32, layers=2, heads=2, ffn=128, n_mels=128)
    reference = theirs(config)
    sources = (
        read_whisper(hf_folder(tmp_path / "hf", config, reference, prefix)),
        read_whisper(openai_file(tmp_path / "large.pt", config, reference)),
    )
    log_mel = mel(config, 3000)
    expected = reference(log_mel).last_hidden_state
    outputs = []
    for found, tensors in sources:
        assert found == config
        outputs.append(ours(found, tensors)(log_mel))
    assert torch.equal(*outputs)
    assert (outputs[0] - expected).abs().max() <= TOLERANCE


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    config = SIZES[0]
    folder = hf_folder(tmp_path / "hf", config, theirs(config), prefix="something.encoder_of.")
    with pytest.raises(CheckpointError, match=r"model\.encoder"):
        read_whisper(folder)


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"encoder.conv1.bias": torch.zeros(2)}}, tmp_path / "beats.pt")
    with pytest.raises(CheckpointError, match=r"dims.*model_state_dict"):
        read_whisper(tmp_path / "beats.pt")


@pytest.mark.parametrize("key", ["d_model", "encoder_attention_heads", "max_source_positions"])
def test_a_missing_size_of_a_folder_is_named(tmp_path: Path, key: str) -> None:
    folder = hf_folder(tmp_path / "hf", SIZES[0], theirs(SIZES[0]))
    raw = json.loads((folder / "config.json").read_text())
    del raw[key]
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=key):
        read_whisper(folder)


def test_a_missing_size_of_an_openai_file_is_named(tmp_path: Path) -> None:
    path = openai_file(tmp_path / "base.pt", SIZES[0], theirs(SIZES[0]))
    loaded = torch.load(path, weights_only=True)
    del loaded["dims"]["n_audio_state"]
    torch.save(loaded, path)
    with pytest.raises(CheckpointError, match="n_audio_state"):
        read_whisper(path)
