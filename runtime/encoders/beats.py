"""BEATs on our own kernels."""

from typing import TYPE_CHECKING

import numpy as np

from salmonrun.runtime.arrays import F32, Array
from salmonrun.runtime.encoders.frames import check_positions, patches, product, windows
from salmonrun.runtime.encoders.native_weights import EncoderReader
from salmonrun.runtime.manifest import NativeBeats

if TYPE_CHECKING:
    from salmonrun.kernels.cpu import _native


class BeatsFrontEnd:
    """fbank [1, F, bins] to states [T, dim]: patches, and a convolution in groups, which tells positions."""

    leading = 0

    def __init__(self, reader: EncoderReader, spec: NativeBeats, patch: int) -> None:
        self._spec = spec
        self._patch = patch
        width = spec.dim // spec.conv_pos_groups
        self._embedding = reader.floats("patch_embedding", spec.patch_dim, patch * patch)
        self._patch_norm = reader.norm("layer_norm", spec.patch_dim)
        self._projection = reader.floats("post_extract_proj", spec.dim, spec.patch_dim)
        self._conv = reader.grouped("encoder.pos_conv", spec.conv_pos_groups, width, spec.conv_pos * width)
        self._norm = reader.norm("encoder.layer_norm", spec.dim)

    def nothing_past(self) -> F32:
        """What the convolution heard last [1, conv_pos // 2, dim]."""
        return np.zeros((1, self._spec.conv_pos // 2, self._spec.dim), np.float32)

    def __call__(self, encoder: "_native.Encoder", inputs: dict[str, Array], past: Array | None) -> tuple[F32, Array]:
        """See `FrontEnd`."""
        assert past is not None
        spec = self._spec
        x = product(encoder, self._embedding, patches(inputs["fbank"][0], self._patch), spec.patch_dim)
        check_positions(len(x), spec.positions)
        encoder.normalize(self._patch_norm, x)
        x = product(encoder, self._projection, x, spec.dim)
        heard = np.concatenate([past[0], x])
        x += self._positions(encoder, heard)
        encoder.normalize(self._norm, x)
        return x, heard[None, len(x) :].copy()

    def _positions(self, encoder: "_native.Encoder", heard: F32) -> F32:
        """The convolution [T, dim] of the past and the T states behind it.

        An even kernel pads one step less on the right: the step that published code drops.
        """
        spec, groups = self._spec, self._spec.conv_pos_groups
        half, width = spec.conv_pos // 2, spec.dim // groups
        padded = np.pad(heard, ((0, half - 1 + spec.conv_pos % 2), (0, 0)))
        apart = np.ascontiguousarray(padded.reshape(-1, groups, width).transpose(1, 0, 2))  # [groups, steps, width]
        found = [
            product(encoder, matrix, windows(own, spec.conv_pos), width, gelu=True)
            for matrix, own in zip(self._conv, apart, strict=True)
        ]
        return np.concatenate(found, axis=1)


def load(reader: EncoderReader, spec: NativeBeats, patch: int, threads: int) -> "tuple[BeatsFrontEnd, _native.Encoder]":
    """What is before the layers, and these."""
    layers = [_layer(reader, spec.dim, f"encoder.layers.{i}.") for i in range(spec.layers)]
    bias = reader.vector("bias_by_distance", spec.heads, 2 * spec.positions - 1)
    encoder = reader.encoder(layers, threads, norm_first=False, bias_by_distance=bias)
    return BeatsFrontEnd(reader, spec, patch), encoder


def _layer(reader: EncoderReader, dim: int, prefix: str) -> "_native.EncoderLayer":
    attention = f"{prefix}self_attn."
    names = {
        "out": f"{attention}out_proj",
        "fc1": f"{prefix}fc1",
        "fc2": f"{prefix}fc2",
        "attention_norm": f"{prefix}self_attn_layer_norm",
        "mlp_norm": f"{prefix}final_layer_norm",
    }
    qkv = [reader.linear(f"{attention}{part}_proj", dim, dim) for part in "qkv"]
    return reader.layer(names, qkv, reader.gate(attention))
