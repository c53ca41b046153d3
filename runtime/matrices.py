"""Our own kernels, and the matrices they take from a bundle's files: docs/bundle.md, layout `t16`."""

from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from salmonrun.kernels.cpu import load_native
from salmonrun.kernels.formats import GROUP, SUPER_BLOCK
from salmonrun.runtime.arrays import F32, Array
from salmonrun.runtime.errors import MissingExtraError
from salmonrun.runtime.tensor_file import TensorFile

if TYPE_CHECKING:
    from salmonrun.kernels.cpu import _native

BITS = {"int4": 4, "int8": 8, "nf4": 4}


def kernels() -> ModuleType:
    """The extension.

    Raises:
        MissingExtraError: it was not built.
    """
    try:
        return load_native()
    except ImportError as error:
        raise MissingExtraError(str(error)) from error


class MatrixReader:
    """The matrices and vectors of one file."""

    def __init__(self, file: TensorFile, block: int, activation_block: int, super_block: int | None = None) -> None:
        self.file = file
        self._super_block = super_block
        self._block = block
        self._activation_block = activation_block
        self._matrix = kernels().Matrix

    def matrix(self, name: str, rows: int, columns: int, precision: str) -> "_native.Matrix":
        """A matrix and its bias, if it has one.

        Args:
            name: of its tensors, without `.weight`.
            rows: outputs.
            columns: inputs.
            precision: what it is stored as: fp32, bf16, int8, int4 or nf4.

        Raises:
            BundleError: it is missing, or not as it should be.
        """
        stored = self._stored(name, (), rows, columns, precision)
        return self._made(stored, rows, columns, precision, self.optional(f"{name}.bias", rows))

    def stacked(self, name: str, count: int, rows: int, columns: int, precision: str) -> "list[_native.Matrix]":
        """Several of one shape, which one tensor has, and their biases, which one vector has; else as `matrix`."""
        bias = self.optional(f"{name}.bias", count * rows)
        biases = [None] * count if bias is None else list(bias.reshape(count, rows))
        parts = zip(*self._stored(name, (count,), rows, columns, precision), strict=True)
        return [self._made(stored, rows, columns, precision, own) for stored, own in zip(parts, biases, strict=True)]

    def vector(self, name: str, *shape: int) -> F32:
        """An array of floats."""
        return self.file.array(name, "F32", shape)

    def optional(self, name: str, *shape: int) -> F32 | None:
        """The same, if it is there."""
        return self.vector(name, *shape) if name in self.file.names else None

    def _stored(
        self, name: str, stacked: tuple[int, ...], rows: int, columns: int, precision: str
    ) -> tuple[Array, ...]:
        """The tensors of a matrix, or of `stacked` ones: packed, then multiples and scales, if it has them."""
        groups, blocks = -(-rows // GROUP), -(-columns // self._block)
        if precision == "fp32":
            return (self.file.array(f"{name}.weight", "F32", (*stacked, groups, columns, GROUP)),)
        if precision == "bf16":
            return (self.file.array(f"{name}.weight", "BF16", (*stacked, groups, -(-columns // 2), GROUP, 2)),)
        if precision == "int4" and self._super_block:
            return self._super_blocks(name, (*stacked, groups), columns)
        lines = (groups, blocks * self._block // 32, BITS[precision], 64)
        packed = self.file.array(f"{name}.weight", "U8", (*stacked, *lines))
        dtype = "F32" if precision == "nf4" else "F16"
        return packed, self.file.array(f"{name}.weight.scale", dtype, (*stacked, groups, blocks, GROUP))

    def _super_blocks(self, name: str, groups: tuple[int, ...], columns: int) -> tuple[Array, ...]:
        blocks, super_blocks = -(-columns // self._block), -(-columns // SUPER_BLOCK)
        return (
            self.file.array(f"{name}.weight", "U8", (*groups, blocks * self._block // 32, 4, 64)),
            self.file.array(f"{name}.weight.multiple", "I8", (*groups, blocks, GROUP)),
            self.file.array(f"{name}.weight.scale", "F16", (*groups, super_blocks, GROUP)),
        )

    def _made(
        self, stored: tuple[Array, ...], rows: int, columns: int, precision: str, bias: F32 | None
    ) -> "_native.Matrix":
        made: _native.Matrix
        if precision == "fp32":
            made = self._matrix.floats(*stored, rows, columns, bias)
        elif precision == "bf16":
            made = self._matrix.bfloat16(*stored, rows, columns, bias)
        elif precision == "nf4":
            made = self._matrix.nf4(*stored, rows, columns, self._block, bias)
        elif precision == "int4" and self._super_block:
            packed, multiples, scales = stored
            made = self._matrix.super_blocks(packed, multiples, scales.view(np.uint16), rows, columns, bias)
        else:
            packed, scales = stored
            sizes = (rows, columns, BITS[precision], self._block, self._activation_block)
            made = self._matrix(packed, scales.view(np.uint16), *sizes, bias)
        return made
