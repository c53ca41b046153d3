"""The extension's types; binding.cpp and binding_encoder.cpp define them.

Arrays must be contiguous and of exactly these dtypes (TypeError); what does not fit together is refused (ValueError).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

def instruction_sets() -> list[str]:
    """Those that this processor and this build have, the fastest first."""

class Matrix:
    """A quantized matrix: layout t16 of salmonrun.kernels.formats. The arrays are kept and not copied."""

    def __init__(
        self,
        packed: Bytes,
        scales: npt.NDArray[np.uint16],
        rows: int,
        columns: int,
        bits: int,
        block: int,
        activation_block: int,
        bias: F32 | None = None,
    ) -> None: ...
    @staticmethod
    def super_blocks(
        packed: Bytes,
        multiples: npt.NDArray[np.int8],
        scales: npt.NDArray[np.uint16],
        rows: int,
        columns: int,
        bias: F32 | None = None,
    ) -> Matrix:
        """One of int4 in super-blocks, as quantize_super_t16 makes it; activations have blocks of 128."""

    @staticmethod
    def nf4(packed: Bytes, scales: F32, rows: int, columns: int, block: int, bias: F32 | None = None) -> Matrix:
        """One of nf4, in the same layout; its products are of floats."""

    @staticmethod
    def floats(packed: F32, rows: int, columns: int, bias: F32 | None = None) -> Matrix:
        """One that is not quantized: `packed` [ceil(rows / 16), columns, 16], as pack_floats_t16 makes it."""

    @staticmethod
    def bfloat16(packed: npt.NDArray[np.uint16], rows: int, columns: int, bias: F32 | None = None) -> Matrix:
        """One of bfloat16: `packed` [ceil(rows / 16), ceil(columns / 2), 16, 2], as pack_bfloat16_t16 makes it."""

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
    """One matrix, or two thin ones in its place: up(down(x))."""

    def __init__(self, up: Matrix, down: Matrix | None = None) -> None: ...

class LayerNorm:
    """`weight` and `bias` [dim], which are copied."""

    def __init__(self, weight: F32, bias: F32, eps: float) -> None: ...

class Gate:
    """How much of BEATs' relative position bias each query takes; its vectors are copied.

    Of a head's query q, with its bias and not yet scaled: a = sigmoid(weight[0] q + bias[0]), b = sigmoid(weight[1] q +
    bias[1]), and the gate a * (b * scale[head] - 1) + 2. `weight` [2, head_dim], `bias` [2], `scale` [heads].
    """

    def __init__(self, weight: F32, bias: F32, scale: F32) -> None: ...

class EncoderLayer:
    """Attention, and an MLP with GELU. With `dim` inputs, all but fc1 have as many outputs, and fc2 takes fc1's."""

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
    """The transformer of an encoder of audio. It keeps nothing between two calls, which must not overlap.

    `forward`, `product`, `normalize` and `gelu` let other Python threads run.
    """

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
    ) -> None:
        """Matrices are all of floats, or all of integers; attention is then, too.

        Args:
            layers: at least one; with gates where there is a bias by distance, else without.
            heads: which share `dim` evenly.
            norm_first: x + f(norm(x)), as Whisper has it; else norm(x + f(x)), as BEATs and EAT do.
            norm: behind the last layer.
            bias_by_distance: [heads, 2 * longest - 1], of key - query; recordings have at most `longest` positions.
            instruction_set: one of `instruction_sets()`.
            threads: at least 1.

        Raises:
            ValueError: what does not fit together.
            RuntimeError: the system has not so many threads.
        """

    def forward(
        self,
        x: F32,
        counts: npt.NDArray[np.int32],
        past: Sequence[Bytes],
        present: Sequence[Bytes],
    ) -> None:
        """States of the positions of some recordings, which do not see each other.

        Args:
            x: [positions, dim], recording behind recording; states take their place.
            counts: positions of each recording, at least 1, with its past at most 65535.
            past: of each recording what was kept before, [layers, P, position_bytes]; P may be 0. It is copied where it
                is not contiguous.
            present: filled with what is kept of each recording, [layers, P + count, position_bytes]; empty: nothing is.
                None of it may overlap another array.

        Raises:
            ValueError: sizes that do not fit; nothing has changed then.
        """

    def product(self, matrix: Matrix, x: F32, out: F32, gelu: bool = False) -> None:
        """Rows of `x` [n, columns] times a matrix of floats, through GELU if asked for, to `out` [n, rows].

        Only what is in a row of `x` must be contiguous: rows may overlap, as those of a convolution over time do.

        Raises:
            ValueError: another kind of matrix, or sizes that do not fit.
        """

    def normalize(self, norm: LayerNorm, x: F32) -> None:
        """Rows [n, dim of the norm] in place; ValueError where `x` is no whole rows."""

    def gelu(self, x: F32) -> None:
        """In place, of any shape; with the error function, not tanh."""

    @property
    def instruction_set(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def position_bytes(self) -> int:
        """What is kept of a position in a layer: keys and values as bytes and their scales, or as floats."""

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
    def layer_norm(self, x: F32, weight: F32, bias: F32, eps: float) -> None:
        """Of any size."""

    def gelu(self, x: F32) -> None: ...
    def weigh(self, scores: F32, count: int, value_scales: F32, out: npt.NDArray[np.int8]) -> tuple[float, int]:
        """Of `count` scores bytes, and -127 behind them in `out`: what a step stands for, and the sum of all bytes.

        `scores` are lost; `value_scales` are as many.
        """
    def to_half(self, x: F32, out: npt.NDArray[np.uint16]) -> None: ...
    def to_bytes(self, x: F32, out: npt.NDArray[np.int8]) -> float: ...
