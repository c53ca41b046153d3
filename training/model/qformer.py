"""Fusion of both encoders and the window-level Q-Former (Tang et al. 2023, SALMONN; layers of BLIP-2's Q-Former).

Every window of encoder frames is read by the same few queries; no attention crosses windows, and inside a window there
is no order but what the encoders put there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmonrun.runtime.config import WindowConfig
from salmonrun.training.model.config import ModelConfig, QFormerConfig

BERT_EPS = 1e-12


class QFormer(nn.Module):
    """Speech and audio states to embeddings for the LLM.

    Args:
        model: config of the whole model, since the Q-Former's widths follow from its neighbours.
    """

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        config = model.qformer
        speech_dim, audio_dim = model.whisper.d_model, model.audio_encoder.dim if model.audio_encoder else 0
        self.window = config.window
        self.ln_speech = nn.LayerNorm(speech_dim)
        self.ln_audio = nn.LayerNorm(audio_dim) if audio_dim else None
        self.query_tokens = nn.Parameter(torch.empty(config.window.num_queries, config.dim).normal_(std=0.02))
        self.embed_norm = nn.LayerNorm(config.dim, eps=BERT_EPS)
        self.layers = nn.ModuleList(QFormerLayer(config, speech_dim + audio_dim) for _ in range(config.layers))
        self.proj = nn.Linear(config.dim, model.llm_dim)

    def forward(
        self,
        speech: Tensor,
        audio: Tensor | None = None,
        audio_valid: Tensor | None = None,
        speech_valid: Tensor | None = None,
    ) -> Tensor:
        """Speech [B, S, speech_dim], audio [B, A, audio_dim] -> [B, windows * num_queries, llm_dim].

        `audio_valid` [B, A] and `speech_valid` [B, S] mark the states that exist; with audio, the others become the
        zeros they would be in a row alone.
        """
        fused = self.fuse(speech, audio, audio_valid, speech_valid)
        windows = slice_windows(fused, self.window)  # [B, L, frames, width]
        batch, count = windows.shape[:2]
        x = self.embed_norm(self.query_tokens).expand(batch * count, -1, -1)
        for layer in self.layers:
            x = layer(x, windows.flatten(0, 1))
        return self.proj(x).reshape(batch, count * self.window.num_queries, -1)

    def fuse(
        self,
        speech: Tensor,
        audio: Tensor | None,
        audio_valid: Tensor | None = None,
        speech_valid: Tensor | None = None,
    ) -> Tensor:
        """Normalise both, pad the shorter with zeros, join along features: [B, max(S, A), speech_dim + audio_dim]."""
        speech = self.ln_speech(speech)
        if self.ln_audio is None or audio is None:
            return speech
        audio = self.ln_audio(audio)
        if audio_valid is not None:
            audio = audio * audio_valid[..., None]
        if speech_valid is not None:
            speech = speech * speech_valid[..., None]
        length = max(speech.shape[1], audio.shape[1])
        return torch.cat([F.pad(x, (0, 0, 0, length - x.shape[1])) for x in (speech, audio)], dim=-1)


def slice_windows(frames: Tensor, window: WindowConfig) -> Tensor:
    """[B, T, D] -> [B, L, window.frames, D]; frames that fill no window are dropped."""
    return frames.unfold(1, window.frames, window.stride).transpose(2, 3)


class QFormerLayer(nn.Module):
    """Post-norm: self-attention among queries, cross-attention to the window, feed-forward."""

    def __init__(self, config: QFormerConfig, window_dim: int) -> None:
        super().__init__()
        self.self_attn = BertAttention(config, config.dim)
        self.cross_attn = BertAttention(config, window_dim)
        self.fc1 = nn.Linear(config.dim, config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=BERT_EPS)

    def forward(self, x: Tensor, window: Tensor) -> Tensor:
        """[N, queries, dim], window [N, frames, window_dim] -> [N, queries, dim]."""
        x = self.self_attn(x, x)
        x = self.cross_attn(x, window)
        return self.norm(x + self.fc2(F.gelu(self.fc1(x))))


class BertAttention(nn.Module):
    """Multi-head attention with BERT's output projection, residual and layer norm."""

    def __init__(self, config: QFormerConfig, context_dim: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.dim, config.dim)
        self.key = nn.Linear(context_dim, config.dim)
        self.value = nn.Linear(context_dim, config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        for projection in (self.value, self.out):  # torch's default is narrower by the root of 3, for each of the two:
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)  # the constant queries would win
        self.norm = nn.LayerNorm(config.dim, eps=BERT_EPS)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[N, queries, dim], context [N, frames, context_dim] -> [N, queries, dim]."""
        q, k, v = (
            projection(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, states in ((self.query, x), (self.key, context), (self.value, context))
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.norm(x + self.out(attended))
