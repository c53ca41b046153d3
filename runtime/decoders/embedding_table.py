"""Token embeddings, which decoders gather from the bundle's file."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.manifest import EmbeddingSpec


class EmbeddingTable:
    """Token embeddings gathered from a memory map, or from a copy of the file where the bundle says so."""

    def __init__(self, bundle: Bundle, spec: EmbeddingSpec) -> None:
        stored: Any = np.uint16 if spec.dtype == "bfloat16" else np.dtype(spec.dtype)
        path, shape = bundle.path(spec.file), (spec.rows, spec.dim)
        self._rows = (
            np.fromfile(path, stored, spec.rows * spec.dim).reshape(shape)
            if bundle.private
            else np.memmap(path, stored, mode="r", shape=shape)
        )
        self._bfloat16 = spec.dtype == "bfloat16"

    def __call__(self, token_ids: Sequence[int], /) -> F32:
        """[len(token_ids), dim] in float32."""
        rows = self._rows[np.asarray(token_ids, np.int64)]
        if self._bfloat16:  # the upper half of a float32
            return np.asarray((rows.astype(np.uint32) << 16).view(np.float32))
        return np.asarray(rows, np.float32)
