"""Products with the bundle's matrices, whatever they are stored as. A faster kernel is one more class of `Product`."""

import importlib
import importlib.util
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from salmonrun.kernels.formats import NF4


@dataclass(frozen=True, eq=False)
class Stored:
    """Rows of a matrix on the device, as docs/bundle.md has them in `torch`."""

    precision: str
    values: Tensor  # [out, in] in floats; or packed [out, blocks, block * bits / 8] in uint8
    scales: Tensor | None  # [out, blocks] in float32, of what is packed
    columns: int  # inputs

    @classmethod
    def stacked(cls, parts: "list[Stored]") -> "Stored":
        """The rows of several matrices of one precision and width, below each other."""
        scales = [part.scales for part in parts if part.scales is not None]
        values = torch.cat([part.values for part in parts])
        return cls(parts[0].precision, values, torch.cat(scales) if scales else None, parts[0].columns)


class Product(Protocol):
    """x [..., in] times a matrix [out, in], and its bias if it has one: [..., out]."""

    name: str
    stored: Stored  # what is multiplied with, as it lies on the device
    bias: Tensor | None  # [out]

    @property
    def rows(self) -> int:
        """Outputs."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        ...

    def weight(self) -> Tensor:
        """The matrix [out, in] as it is multiplied with."""
        ...


class Plain:
    """A matrix of floats."""

    name = "plain"

    def __init__(self, stored: Stored, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.stored = replace(stored, values=stored.values.to(dtype))
        self.bias = bias
        self.rows = len(stored.values)

    def weight(self) -> Tensor:
        """The matrix [out, in]."""
        return self.stored.values

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return F.linear(x, self.stored.values, self.bias)


class Dequantized:
    """A quantized matrix whose values are computed anew for each product, in float32, and rounded to `dtype` once."""

    name = "dequantized"

    def __init__(self, stored: Stored, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.stored = stored
        self.bias = bias
        self._dtype = dtype
        self.rows = len(stored.values)
        self._table = torch.from_numpy(NF4.copy()).to(stored.values.device)

    def weight(self) -> Tensor:
        """The matrix [out, in]."""
        stored = self.stored
        assert stored.scales is not None, "what is packed has scales"
        if stored.precision == "nf4":
            values = self._table[_nibbles(stored.values, high_first=True).int()]
        elif stored.precision == "int4":
            values = _nibbles(stored.values, high_first=False).float() - 8
        else:
            values = stored.values.float() - 128
        return (values * stored.scales[..., None]).flatten(1)[:, : stored.columns].to(self._dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return F.linear(x, self.weight(), self.bias)


class Bitsandbytes(Dequantized):
    """A matrix of nf4 by bitsandbytes' own kernels, which read it as it is stored."""

    name = "bitsandbytes"

    def __init__(self, stored: Stored, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(stored, bias, dtype)
        importlib.import_module("bitsandbytes")  # declares torch.ops.bitsandbytes
        rows, blocks, half = stored.values.shape
        self._shape = [rows, 2 * blocks * half]
        self._block = 2 * half

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        stored = self.stored
        assert stored.scales is not None, "what is packed has scales"
        padded = F.pad(x, (0, self._shape[1] - stored.columns)) if self._shape[1] > stored.columns else x
        product: Tensor = torch.ops.bitsandbytes.gemm_4bit(
            padded, stored.values.view(-1, 1), self._shape, stored.scales.view(-1), self._block, "nf4", self.bias
        )
        return product


def product(stored: Stored, bias: Tensor | None, dtype: torch.dtype) -> Product:
    """What multiplies with a matrix fastest, of what there is on its device.

    Args:
        stored: the matrix.
        bias: [out] in `dtype`, or None.
        dtype: of what it is multiplied with.
    """
    if stored.scales is None:
        return Plain(stored, bias, dtype)
    # On a CPU bitsandbytes' fused kernel rounds what it multiplies to bfloat16, and the plain one dequantizes as we do.
    if stored.precision == "nf4" and stored.values.is_cuda and _has_bitsandbytes():
        return Bitsandbytes(stored, bias, dtype)
    return Dequantized(stored, bias, dtype)


def _has_bitsandbytes() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def _nibbles(packed: Tensor, high_first: bool) -> Tensor:
    """4-bit values [..., 2 n], one a byte, of bytes [..., n]."""
    low, high = packed & 15, packed >> 4
    return torch.stack((high, low) if high_first else (low, high), dim=-1).flatten(-2)
