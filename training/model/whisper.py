"""Whisper's encoder (Radford et al. 2022; layout of transformers' WhisperEncoder), without its fixed 30 s window."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmonrun.runtime.config import Block
from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.model.blocks import attended, valid_positions
from salmonrun.training.model.config import LoraConfig, WhisperConfig
from salmonrun.training.model.lora import add_lora


def build_whisper(config: WhisperConfig, lora: LoraConfig | None) -> "WhisperEncoder":
    """An encoder of random weights, with adapters if there is a `lora`.

    Raises:
        CheckpointError: the adapters do not fit it.
    """
    whisper = WhisperEncoder(config)
    if lora:
        add_lora(whisper, lora, "whisper_lora")
    return whisper.eval()


class WhisperEncoder(nn.Module):
    """Log-mel spectrogram to speech states, 50 a second. Parameter names are those of transformers."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.n_mels, config.d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_frames, config.d_model)
        self.embed_positions.weight.data.copy_(sinusoids(config.max_frames, config.d_model))
        self.embed_positions.weight.requires_grad_(False)
        self.layers = nn.ModuleList(WhisperLayer(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.d_model)
        for name, rank in (config.ranks or {}).items():
            self.set_submodule(name, _low_rank(self, name, rank))

    def forward(self, log_mel: Tensor, frames: Tensor | None = None, block: Block | None = None) -> Tensor:
        """[B, n_mels, 2 T] -> [B, T, d_model]; T up to the rows of the position table (1500).

        `frames` [B] is how many of the T each row has, if not all: a row padded with zeros gives what it gives alone.
        With `block` a frame attends to its own block and the look-back. The convolutions stay as they are: the last
        frame of a block sees 12.5 ms of the next one.
        """
        valid = None
        if frames is not None and bool((frames != log_mel.shape[2] // 2).any()):
            valid = valid_positions(frames, log_mel.shape[2] // 2)
        x = self.embed(log_mel)
        keys = attended(x.shape[1], valid, block, x.device)
        for layer in self.layers:
            x = layer(x, keys)
        return self.layer_norm(x)

    def embed(self, log_mel: Tensor) -> Tensor:
        """What goes into the first layer: [B, n_mels, 2 T] -> [B, T, d_model]."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(log_mel)))).transpose(1, 2)
        return x + self.embed_positions.weight[: x.shape[1]]


class WhisperLayer(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.self_attn = WhisperAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """[B, T, d_model], keys to attend to [B or 1, 1, T or 1, T] or None for all -> [B, T, d_model]."""
        x = x + self.self_attn(self.self_attn_layer_norm(x), keys)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class WhisperAttention(nn.Module):
    """Bidirectional multi-head attention; the key projection has no bias."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """[B, T, d_model], keys to attend to [B or 1, 1, T or 1, T] or None for all -> [B, T, d_model]."""
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2).flatten(2))


class LowRankLinear(nn.Module):
    """A linear layer of low rank: a thin one behind another."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.up(self.down(x))


def _low_rank(whisper: nn.Module, name: str, rank: int) -> LowRankLinear:
    linear = {found: layer for found, layer in whisper.named_modules() if isinstance(layer, nn.Linear)}
    if name not in linear:
        raise CheckpointError(f"whisper.ranks has {name!r}; linear layers here are {', '.join(linear)}")
    return LowRankLinear(linear[name].in_features, linear[name].out_features, rank)


def sinusoids(length: int, channels: int) -> Tensor:
    """Whisper's position table [length, channels]: sines, then cosines (openai/whisper, model.py)."""
    step = math.log(10000) / (channels // 2 - 1)
    angles = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(channels // 2))[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)
