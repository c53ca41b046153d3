"""Whisper's encoder on our own kernels."""

from typing import TYPE_CHECKING

import numpy as np

from salmonrun.runtime.arrays import F32, Array
from salmonrun.runtime.encoders.frames import check_positions, product, windows
from salmonrun.runtime.encoders.native_weights import EncoderReader
from salmonrun.runtime.manifest import NativeWhisper

if TYPE_CHECKING:
    from salmonrun.kernels.cpu import _native

KERNEL = 3  # of both convolutions


class WhisperFrontEnd:
    """log_mel [1, n_mels, 2 T], or with blocks [1, n_mels, 2 T + 2] and start [1], to states [T, dim]."""

    leading = 0

    def __init__(self, reader: EncoderReader, spec: NativeWhisper, n_mels: int, blocks: bool) -> None:
        self._dim = spec.dim
        self._blocks = blocks
        self._conv1 = reader.floats("conv1", spec.dim, KERNEL * n_mels)
        self._conv2 = reader.floats("conv2", spec.dim, KERNEL * spec.dim)
        self._positions = reader.vector("embed_positions.weight", spec.positions, spec.dim)

    def nothing_past(self) -> F32:
        """The first convolution's last step [1, dim, 1]."""
        return np.zeros((1, self._dim, 1), np.float32)

    def __call__(self, encoder: "_native.Encoder", inputs: dict[str, Array], past: Array | None) -> tuple[F32, Array]:
        """See `FrontEnd`."""
        assert past is not None
        mel, start = inputs["log_mel"][0].T, 0  # [hops, n_mels]
        if self._blocks:
            start = int(inputs["start"][0])
        else:  # the hops around the recording, which blocks come with
            mel = np.pad(mel, ((1, 1), (0, 0)))
        heard = windows(np.ascontiguousarray(mel, np.float32), KERNEL)
        steps = np.empty((1 + len(heard), self._dim), np.float32)
        steps[0] = past[0, :, 0]
        if len(heard):
            encoder.product(self._conv1, heard, steps[1:], True)
        x = product(encoder, self._conv2, windows(steps, KERNEL, step=2), self._dim, gelu=True)
        check_positions(start + len(x), len(self._positions))
        x += self._positions[start : start + len(x)]
        return x, steps[-1:].T[None].copy()


def load(
    reader: EncoderReader, spec: NativeWhisper, n_mels: int, blocks: bool, threads: int
) -> "tuple[WhisperFrontEnd, _native.Encoder]":
    """What is before the layers, and these."""
    layers = [_layer(reader, spec.dim, f"layers.{i}.") for i in range(spec.layers)]
    encoder = reader.encoder(layers, threads, norm_first=True, norm=reader.norm("layer_norm", spec.dim))
    return WhisperFrontEnd(reader, spec, n_mels, blocks), encoder


def _layer(reader: EncoderReader, dim: int, prefix: str) -> "_native.EncoderLayer":
    attention = f"{prefix}self_attn."
    names = {
        "out": f"{attention}out_proj",
        "fc1": f"{prefix}fc1",
        "fc2": f"{prefix}fc2",
        "attention_norm": f"{prefix}self_attn_layer_norm",
        "mlp_norm": f"{prefix}final_layer_norm",
    }
    return reader.layer(names, [reader.linear(f"{attention}{part}_proj", dim, dim) for part in "qkv"])
