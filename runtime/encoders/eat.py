"""EAT on our own kernels."""

from typing import TYPE_CHECKING

import numpy as np

from salmonrun.runtime.arrays import F32, Array
from salmonrun.runtime.encoders.frames import check_positions, patches
from salmonrun.runtime.encoders.native_weights import EncoderReader
from salmonrun.runtime.manifest import NativeEat

if TYPE_CHECKING:
    from salmonrun.kernels.cpu import _native


class EatFrontEnd:
    """fbank [1, F, bins] to states [1 + T, dim]: a CLS token, then patches with their positions."""

    leading = 1

    def __init__(self, reader: EncoderReader, spec: NativeEat, patch: int) -> None:
        self._dim = spec.dim
        self._patch = patch
        self._embedding = reader.floats("patch_embedding", spec.dim, patch * patch)
        self._positions = reader.vector("positions", spec.positions, spec.dim)
        self._token = reader.vector("cls_token", spec.dim)
        self._norm = reader.norm("pre_norm", spec.dim)

    def nothing_past(self) -> None:
        """It does not hear in blocks."""

    def __call__(self, encoder: "_native.Encoder", inputs: dict[str, Array], past: Array | None) -> tuple[F32, Array]:
        """See `FrontEnd`."""
        assert past is None
        found = patches(inputs["fbank"][0], self._patch)
        check_positions(len(found), len(self._positions))
        x = np.empty((1 + len(found), self._dim), np.float32)
        x[0] = self._token
        if len(found):
            encoder.product(self._embedding, found, x[1:])
        x[1:] += self._positions[: len(found)]
        encoder.normalize(self._norm, x)
        return x, x[:0]


def load(reader: EncoderReader, spec: NativeEat, patch: int, threads: int) -> "tuple[EatFrontEnd, _native.Encoder]":
    """What is before the layers, and these."""
    layers = [_layer(reader, spec.dim, f"blocks.{i}.") for i in range(spec.layers)]
    return EatFrontEnd(reader, spec, patch), reader.encoder(layers, threads, norm_first=False)


def _layer(reader: EncoderReader, dim: int, prefix: str) -> "_native.EncoderLayer":
    names = {
        "out": f"{prefix}attn.proj",
        "fc1": f"{prefix}mlp.fc1",
        "fc2": f"{prefix}mlp.fc2",
        "attention_norm": f"{prefix}norm1",
        "mlp_norm": f"{prefix}norm2",
    }
    return reader.layer(names, reader.stacked(f"{prefix}attn.qkv", 3, dim, dim))
