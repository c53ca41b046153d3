"""A bundle's weights of an encoder for our own kernels, as these take them: docs/bundle.md, "The encoders' weights"."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from salmonrun.kernels.formats import GROUP
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.manifest import NativeEncoder
from salmonrun.runtime.matrices import MatrixReader, kernels
from salmonrun.runtime.tensor_file import TensorFile

if TYPE_CHECKING:
    from salmonrun.kernels.cpu import _native


class EncoderReader:
    """The tensors of one encoder's file, by the checkpoint's names.

    Raises:
        BundleError: of each method, too: a tensor is missing, or not as the manifest says.
        MissingExtraError: the kernels were not built.
    """

    def __init__(self, bundle: Bundle, encoder: NativeEncoder) -> None:
        self._native = kernels()
        self._encoder = encoder
        self.file = TensorFile(bundle.path(encoder.file), bundle.private)
        self._matrices = MatrixReader(self.file, encoder.block, encoder.activation_block)

    def encoder(
        self, layers: "list[_native.EncoderLayer]", threads: int, norm_first: bool, **others: Any
    ) -> "_native.Encoder":
        """The extension's encoder of these layers, on the fastest instruction set."""
        encoder: _native.Encoder = self._native.Encoder(
            layers=layers,
            heads=self._encoder.heads,
            norm_first=norm_first,
            instruction_set=self._native.instruction_sets()[0],
            threads=threads,
            **others,
        )
        return encoder

    def layer(
        self, names: Mapping[str, str], qkv: "list[_native.Linear]", gate: "_native.Gate | None" = None
    ) -> "_native.EncoderLayer":
        """A layer, its parts but the first three by their names: out, fc1, fc2, attention_norm, mlp_norm."""
        dim, ffn = self._encoder.dim, self._encoder.ffn
        shapes = {"out": (dim, dim), "fc1": (ffn, dim), "fc2": (dim, ffn)}
        layer: _native.EncoderLayer = self._native.EncoderLayer(
            **dict(zip("qkv", qkv, strict=True)),
            **{part: self.linear(names[part], *shape) for part, shape in shapes.items()},
            **{part: self.norm(names[part], dim, self._encoder.layer_eps) for part in ("attention_norm", "mlp_norm")},
            gate=gate,
        )
        return layer

    def linear(self, name: str, rows: int, columns: int) -> "_native.Linear":
        """A matrix of the layers, or two thin ones."""
        precision = self._encoder.precision_of(name)
        linear: _native.Linear
        if f"{name}.down.weight" not in self._matrices.file.names:
            linear = self._native.Linear(self._matrices.matrix(name, rows, columns, precision))
            return linear
        # No tensor has the exact rank, and none needs to: what fills its last group of 16 up is zero.
        rank = GROUP * self._matrices.file.dimension(f"{name}.down.weight", 0)
        down = self._matrices.matrix(f"{name}.down", rank, columns, precision)
        linear = self._native.Linear(self._matrices.matrix(f"{name}.up", rows, rank, precision), down)
        return linear

    def stacked(self, name: str, count: int, rows: int, columns: int) -> "list[_native.Linear]":
        """Several matrices of the layers, which one tensor has."""
        matrices = self._matrices.stacked(name, count, rows, columns, self._encoder.precision_of(name))
        return [self._native.Linear(matrix) for matrix in matrices]

    def floats(self, name: str, rows: int, columns: int) -> "_native.Matrix":
        """A matrix outside the layers: in float32 whatever theirs are."""
        return self._matrices.matrix(name, rows, columns, "fp32")

    def grouped(self, name: str, groups: int, rows: int, columns: int) -> "list[_native.Matrix]":
        """The same of a convolution in groups: a matrix for each."""
        return self._matrices.stacked(name, groups, rows, columns, "fp32")

    def norm(self, name: str, size: int, eps: float | None = None) -> "_native.LayerNorm":
        """Layer normalisation; outside the layers, if `eps` is not given."""
        vectors = (self.vector(f"{name}.{part}", size) for part in ("weight", "bias"))
        norm: _native.LayerNorm = self._native.LayerNorm(*vectors, self._encoder.eps if eps is None else eps)
        return norm

    def gate(self, prefix: str) -> "_native.Gate":
        """Of BEATs' position bias."""
        heads = self._encoder.heads
        gate: _native.Gate = self._native.Gate(
            self.vector(f"{prefix}gate.weight", 2, self._encoder.dim // heads),
            self.vector(f"{prefix}gate.bias", 2),
            self.vector(f"{prefix}grep_a", heads),
        )
        return gate

    def vector(self, name: str, *shape: int) -> F32:
        """An array of floats."""
        return self._matrices.vector(name, *shape)
