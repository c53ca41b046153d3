"""transformers' Whisper encoder without its check that a window is 30 s."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import WhisperModel


class AnyLengthEncoder(nn.Module):
    """Log-mel spectrogram to states, any length up to the position table."""

    def __init__(self, source: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder = WhisperModel.from_pretrained(source, dtype=dtype, attn_implementation="sdpa").encoder.eval()

    def forward(self, log_mel: Tensor) -> Tensor:
        """[1, n_mels, 2 T] -> [1, T, d_model]."""
        encoder = self.encoder
        x = gelu(encoder.conv2(gelu(encoder.conv1(log_mel)))).transpose(1, 2)
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        for layer in encoder.layers:
            x = layer(x, attention_mask=None)
            x = x[0] if isinstance(x, tuple) else x  # transformers before 5.10
        states: Tensor = encoder.layer_norm(x)
        return states
