"""The extension's types; binding.cpp defines them. Arrays must be contiguous and of exactly these dtypes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

def instruction_sets() -> list[str]:
    """Those that this processor and this build have, the fastest first."""

class Matrix:
    """A quantized matrix: layout t16 of salmonrun.kernels.formats. The arrays are kept and not copied."""

    def __init__(
        self,
        packed: npt.NDArray[np.uint8],
        scales: npt.NDArray[np.uint16],
        rows: int,
        columns: int,
        bits: int,
        block: int,
        activation_block: int,
        bias: F32 | None = None,
    ) -> None: ...
    @staticmethod
    def nf4(
        packed: npt.NDArray[np.uint8], scales: F32, rows: int, columns: int, block: int, bias: F32 | None = None
    ) -> Matrix:
        """One of nf4, in the same layout; its products are of floats."""
    @staticmethod
    def floats(packed: F32, rows: int, columns: int, bias: F32 | None = None) -> Matrix:
        """One of float32, [ceil(rows / 16), columns, 16]."""
    @staticmethod
    def bfloat16(packed: npt.NDArray[np.uint16], rows: int, columns: int, bias: F32 | None = None) -> Matrix:
        """One of bfloat16, [ceil(rows / 16), ceil(columns / 2), 16, 2]: the bits."""

class Mlp:
    """SwiGLU between two products."""

    def __init__(self, *, gate: Matrix, up: Matrix, down: Matrix) -> None: ...

class Mixture:
    """Experts, of which each position is computed by `per_token`; `router` [experts, dim] is copied."""

    def __init__(
        self,
        *,
        router: F32,
        experts: Sequence[Mlp],
        per_token: int,
        normalised: bool,
        shared: Mlp | None = None,
        shared_gate: F32 | None = None,
    ) -> None: ...

class Layer:
    """A decoder layer; its vectors are copied."""

    def __init__(
        self,
        *,
        input_norm: F32,
        q: Matrix,
        k: Matrix,
        v: Matrix,
        o: Matrix,
        post_norm: F32,
        mlp: Mlp | Mixture,
        q_norm: F32 | None = None,
        k_norm: F32 | None = None,
        window: int | None = None,
    ) -> None: ...

class Model:
    """An LLM and the KV cache of its sequences. Calls must not overlap; `forward` lets other Python threads run."""

    def __init__(
        self,
        *,
        layers: Sequence[Layer],
        norm: F32,
        head: Matrix,
        cos: F32,
        sin: F32,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
        instruction_set: str,
        threads: int,
        cache_bits: int = 16,
    ) -> None: ...
    def open(self) -> int: ...
    def close(self, sequence: int) -> None: ...
    def length(self, sequence: int) -> int: ...
    def truncate(self, sequence: int, length: int) -> None: ...
    def fork(self, source: int, target: int, length: int) -> None: ...
    def forward(self, chunks: npt.NDArray[np.int32], embeds: F32, logits: F32) -> None:
        """Append `chunks` [n, (sequence, positions, logits wanted)] of `embeds` [positions, dim]; fill `logits`."""

    @property
    def instruction_set(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def cache_bytes(self) -> int:
        """Memory that the pages of the cache have, used or not."""

class Linear:
    """A matrix, or with `down` one of low rank: up(down(x))."""

    def __init__(self, up: Matrix, down: Matrix | None = None) -> None: ...

class LayerNorm:
    """Its vectors are copied, as those of all that follows."""

    def __init__(self, weight: F32, bias: F32, eps: float) -> None: ...

class Gate:
    """Of BEATs' relative position bias: `weight` [2, head_dim], `bias` [2], `scale` [heads]."""

    def __init__(self, weight: F32, bias: F32, scale: F32) -> None: ...

class EncoderLayer:
    """A layer of an encoder."""

    def __init__(
        self,
        *,
        q: Linear,
        k: Linear,
        v: Linear,
        out: Linear,
        fc1: Linear,
        fc2: Linear,
        attention_norm: LayerNorm,
        mlp_norm: LayerNorm,
        gate: Gate | None = None,
    ) -> None: ...

class Encoder:
    """The layers of an encoder of audio. Calls must not overlap; they let other Python threads run."""

    def __init__(
        self,
        *,
        layers: Sequence[EncoderLayer],
        heads: int,
        norm_first: bool,
        norm: LayerNorm | None = None,
        bias_by_distance: F32 | None = None,
        instruction_set: str,
        threads: int,
    ) -> None: ...
    def forward(
        self,
        x: F32,
        counts: npt.NDArray[np.int32],
        past: Sequence[npt.NDArray[np.uint8]],
        present: Sequence[npt.NDArray[np.uint8]],
    ) -> None:
        """All layers over `x` [positions, dim] in place: `counts` of several recordings, one behind the other.

        `past`: of each recording, keys and values [layers, positions, position_bytes] of what was before; `present`:
        arrays of the same that have room for the new ones, too, and are filled; empty: nothing is kept.
        """
    def product(self, matrix: Matrix, x: F32, out: F32, gelu: bool = False) -> None:
        """Rows of `x` [n, columns], which may overlap, to `out` [n, rows]; of matrices of floats."""
    def normalize(self, norm: LayerNorm, x: F32) -> None:
        """Rows [n, dim], in place."""
    def gelu(self, x: F32) -> None:
        """In place."""
    @property
    def instruction_set(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def position_bytes(self) -> int: ...

class Operations:
    """Single operations of an instruction set, for tests. Most change their first array, a row of whole 16 values."""

    @staticmethod
    def of(name: str) -> Operations: ...
    def product(self, matrix: Matrix, x: F32, out: F32) -> None: ...
    def rms_norm(self, x: F32, weight: F32, eps: float) -> None: ...
    def rotate(self, x: F32, cos: F32, sin: F32, factor: float) -> None: ...
    def silu_mul(self, gate: F32, up: F32) -> None: ...
    def exp(self, x: F32) -> None: ...
    def dot(self, x: F32, rows: F32, out: F32) -> None: ...
    def softmax(self, scores: F32) -> None: ...
    def add_scaled(self, out: F32, x: F32, factor: float) -> None: ...
    def layer_norm(self, x: F32, weight: F32, bias: F32, eps: float) -> None: ...
    def gelu(self, x: F32) -> None: ...
    def weigh(self, scores: F32, count: int, value_scales: F32, out: npt.NDArray[np.int8]) -> tuple[float, int]: ...
    def to_half(self, x: F32, out: npt.NDArray[np.uint16]) -> None: ...
    def to_bytes(self, x: F32, out: npt.NDArray[np.int8]) -> float: ...
