"""Files of pretrained parts, read under our names: Whisper, audio encoders and LLM folders."""

from pathlib import Path
from typing import Any

from torch import Tensor

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.foreign.fairseq import STAND_INS, plain
from salmonrun.training.foreign.quantized import check_method, dequantized
from salmonrun.training.foreign.weight_files import weight_files
from salmonrun.training.model.config import WhisperConfig
from salmonrun.training.model.encoders import AudioEncoderConfig, read_encoder
from salmonrun.training.model.encoders.published import Published
from salmonrun.training.tensors import (
    LazyTensors,
    foreign,
    lazy,
    load_pickle,
    open_safetensors,
    read_json,
    read_sizes,
    with_prefix,
)

# openai/whisper's names -> transformers'; both describe the same encoder.
OPENAI_NAMES = (
    ("positional_embedding", "embed_positions.weight"),
    ("blocks.", "layers."),
    ("attn.query.", "self_attn.q_proj."),
    ("attn.key.", "self_attn.k_proj."),
    ("attn.value.", "self_attn.v_proj."),
    ("attn.out.", "self_attn.out_proj."),
    ("attn_ln.", "self_attn_layer_norm."),
    ("mlp.0.", "fc1."),
    ("mlp.2.", "fc2."),
    ("mlp_ln.", "final_layer_norm."),
    ("ln_post.", "layer_norm."),
)


def read_whisper(path: Path) -> tuple[WhisperConfig, LazyTensors]:
    """The encoder of a transformers folder (config.json, safetensors) or an OpenAI .pt file."""
    if path.is_file():
        with foreign(path):
            return openai_whisper_of(path, load_pickle(path))
    return whisper_of(path, read_json(path / "config.json"), open_weights(path))


def whisper_of(path: Path, raw: dict[str, Any], tensors: LazyTensors) -> tuple[WhisperConfig, LazyTensors]:
    """The encoder of a transformers folder's config.json and tensors."""
    sizes = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins")
    width, layers, heads, ffn, n_mels, frames = read_sizes(
        raw, (*sizes, "max_source_positions"), f"{path / 'config.json'}"
    )
    config = WhisperConfig(width, layers, heads, ffn, n_mels, frames)
    encoder = with_prefix(tensors, "model.encoder.") or with_prefix(tensors, "encoder.")
    if not encoder:
        raise CheckpointError(f"{path} has no tensors named model.encoder.*; expected a Whisper folder")
    return config, encoder


def openai_whisper_of(path: Path, loaded: dict[str, Any]) -> tuple[WhisperConfig, LazyTensors]:
    """The encoder of an OpenAI .pt, which was loaded."""
    dims, state = loaded.get("dims"), loaded.get("model_state_dict")
    if not isinstance(dims, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{path} has no 'dims' and 'model_state_dict'; expected an OpenAI Whisper file")
    names = ("n_audio_state", "n_audio_layer", "n_audio_head", "n_mels", "n_audio_ctx")
    width, layers, heads, n_mels, max_frames = read_sizes(dims, names, f"{path}: dims")
    config = WhisperConfig(width, layers, heads, 4 * width, n_mels, max_frames)
    return config, {_openai_name(name): get for name, get in with_prefix(as_lazy(state), "encoder.").items()}


def _openai_name(name: str) -> str:
    for theirs, ours in OPENAI_NAMES:
        name = name.replace(theirs, ours)
    return name


def read_audio_encoder(path: Path) -> tuple[AudioEncoderConfig, LazyTensors]:
    """An audio encoder of any kind there is: a published .pt, or a folder with config.json and safetensors.

    Raises:
        CheckpointError: it is of no kind that is known, or damaged.
    """
    with foreign(path):
        config, tensors, _ = read_encoder(open_published(path))
    return config, tensors


def open_published(path: Path) -> Published:
    """A published audio encoder: its own settings, and its tensors."""
    if path.is_dir():
        return Published(path, read_json(path / "config.json"), open_safetensors(path))
    return published_of(path, load_pickle(path, STAND_INS))


def published_of(path: Path, loaded: dict[str, Any]) -> Published:
    """A published audio encoder's .pt, which was loaded."""
    loaded = dict(loaded)
    state = loaded.pop("model", None)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} has no 'model'; expected a published audio encoder")
    tensors = as_lazy(state)
    return Published(path, plain(loaded), tensors, tuple(name for name in state if name not in tensors))


def read_llm(folder: Path) -> tuple[dict[str, Any], LazyTensors]:
    """config.json and tensors of a transformers LLM folder; 4-bit matrices of bitsandbytes as their plain values.

    Raises:
        CheckpointError: a file is missing, or the folder is quantized in another way.
    """
    config = read_json(folder / "config.json")
    quantization = config.pop("quantization_config", None)  # what is given back is not quantized
    if not quantization:
        return config, open_weights(folder)
    check_method(quantization, str(folder))
    return config, dequantized(open_weights(folder), str(folder))


def open_weights(folder: Path) -> LazyTensors:
    """The tensors of a transformers folder: safetensors, or where it has none, PyTorch files (Vicuna).

    Raises:
        CheckpointError: it has neither, or a file is damaged or holds more than tensors.
    """
    files = weight_files(folder)
    if not files or files[0].suffix != ".bin":
        return open_safetensors(folder)
    tensors: LazyTensors = {}
    for file in files:
        tensors |= as_lazy(load_pickle(file))
    return tensors


def as_lazy(state: dict[str, Any]) -> LazyTensors:
    """The tensors of a state dict, other values left out."""
    if wrong := [name for name in state if not isinstance(name, str)]:
        raise CheckpointError(f"a state dict has the key {wrong[0]!r}; expected names of tensors")
    return lazy({name: value for name, value in state.items() if isinstance(value, Tensor)})
