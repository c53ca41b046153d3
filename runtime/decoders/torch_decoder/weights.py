"""A bundle's weights for PyTorch, put on the device: docs/bundle.md, `torch`."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.decoders.torch_decoder.model import Layer, Mixture, Mlp, TorchModel
from salmonrun.runtime.decoders.torch_decoder.products import Product, Stored, product
from salmonrun.runtime.errors import BundleError
from salmonrun.runtime.manifest import LlmSpec, TorchWeights
from salmonrun.runtime.tensor_file import TensorFile

BITS = {"int8": 8, "int4": 4, "nf4": 4}
FLOATS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}  # as safetensors names them


def load_model(bundle: Bundle, device: torch.device, dtype: torch.dtype) -> TorchModel:
    """The LLM on a device, computing in `dtype`.

    Raises:
        BundleError: there are no weights for it, or they are not as the manifest says.
    """
    llm, weights = bundle.manifest.llm, bundle.manifest.llm.weights.torch
    if weights is None:
        raise BundleError(
            f"{bundle.folder} has no weights for the torch decoder, only for {', '.join(llm.weights.decoders)}: "
            "choose another decoder, or export with --decoder torch"
        )
    return _Reader(TensorFile(bundle.path(weights.file)), llm, weights, device, dtype).model()


class _Reader:
    """Tensors by the names of transformers' model."""

    def __init__(
        self, file: TensorFile, llm: LlmSpec, weights: TorchWeights, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._file = file
        self._llm = llm
        self._weights = weights
        self._device = device
        self._dtype = dtype
        for name in weights.int8:
            if f"{name}.weight" not in file.names:
                raise BundleError(f"the manifest has {name!r} in int8, and there is no such matrix; export it again")

    def model(self) -> TorchModel:
        llm = self._llm
        rope = (llm.max_length, llm.head_dim // 2)
        cos, sin = (self._floats(f"rope.{name}", *rope).to(self._device) for name in ("cos", "sin"))
        return TorchModel(
            layers=[self._layer(index) for index in range(llm.layers)],
            norm=self._vector("model.norm.weight", llm.dim),
            head=self._product(["lm_head"], [llm.vocab_size], llm.dim, self._weights.lm_head),
            cos=cos,
            sin=sin,
            heads=llm.heads,
            kv_heads=llm.kv_heads,
            head_dim=llm.head_dim,
            eps=llm.eps,
            dtype=self._dtype,
        )

    def _layer(self, index: int) -> Layer:
        llm, prefix = self._llm, f"model.layers.{index}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        heads = [count * llm.head_dim for count in (llm.heads, llm.kv_heads, llm.kv_heads)]
        return Layer(
            input_norm=self._vector(f"{prefix}input_layernorm.weight", llm.dim),
            qkv=self._product([f"{attention}{part}_proj" for part in "qkv"], heads, llm.dim),
            q_norm=self._optional(f"{attention}q_norm.weight", llm.head_dim),
            k_norm=self._optional(f"{attention}k_norm.weight", llm.head_dim),
            o=self._product([f"{attention}o_proj"], [llm.dim], heads[0]),
            post_norm=self._vector(f"{prefix}post_attention_layernorm.weight", llm.dim),
            mlp=self._mixture(mlp) if f"{mlp}gate.weight" in self._file.names else self._mlp(mlp),
            window=llm.windows[index],
        )

    def _mlp(self, prefix: str) -> Mlp:
        width, dim = self._file.dimension(f"{prefix}gate_proj.weight", 0), self._llm.dim
        gate_up = self._product([f"{prefix}gate_proj", f"{prefix}up_proj"], [width, width], dim)
        return Mlp(gate_up, self._product([f"{prefix}down_proj"], [dim], width))

    def _mixture(self, prefix: str) -> Mixture:
        llm, shared = self._llm, f"{prefix}shared_expert"
        if llm.experts is None:
            raise BundleError(f"{prefix}gate.weight is there, but llm.experts is null; export the bundle again")
        has_shared = f"{shared}_gate.weight" in self._file.names
        count = self._file.dimension(f"{prefix}gate.weight", 0)
        return Mixture(
            router=self._vector(f"{prefix}gate.weight", count, llm.dim),
            experts=self._experts(f"{prefix}experts.", count),
            per_token=llm.experts.per_token,
            normalised=llm.experts.normalised,
            shared=self._mlp(f"{shared}.") if has_shared else None,
            shared_gate=self._vector(f"{shared}_gate.weight", 1, llm.dim) if has_shared else None,
        )

    def _experts(self, prefix: str, count: int) -> list[Mlp]:
        width, dim = self._file.dimension(f"{prefix}gate_proj.weight", 1), self._llm.dim
        gates, ups = (self._stacked(f"{prefix}{part}_proj", count, width, dim) for part in ("gate", "up"))
        downs = self._stacked(f"{prefix}down_proj", count, dim, width)
        return [
            Mlp(product(Stored.stacked([gate, up]), None, self._dtype), product(down, None, self._dtype))
            for gate, up, down in zip(gates, ups, downs, strict=True)
        ]

    def _product(
        self, names: Sequence[str], rows: Sequence[int], columns: int, precision: str | None = None
    ) -> Product:
        """Matrices of the same inputs as one, and their biases, which all have or none."""
        parts = [
            self._stored(name, (count,), columns, precision or self._weights.precision_of(name))
            for name, count in zip(names, rows, strict=True)
        ]
        if len({part.precision for part in parts}) > 1:
            raise BundleError(f"{', '.join(names)} are not all int8 or none of them; export the bundle again")
        biases = [self._optional(f"{name}.bias", count) for name, count in zip(names, rows, strict=True)]
        there = [bias for bias in biases if bias is not None]
        if there and len(there) < len(names):
            raise BundleError(f"some of {', '.join(names)} have a bias, some none; export the bundle again")
        return product(Stored.stacked(parts), torch.cat(there) if there else None, self._dtype)

    def _stacked(self, name: str, count: int, rows: int, columns: int) -> list[Stored]:
        """Several matrices of one shape, which one tensor has."""
        whole = self._stored(name, (count, rows), columns, self._weights.precision)
        scales = [None] * count if whole.scales is None else list(whole.scales)
        parts = zip(whole.values, scales, strict=True)
        return [Stored(whole.precision, values, steps, columns) for values, steps in parts]

    def _stored(self, name: str, rows: tuple[int, ...], columns: int, precision: str) -> Stored:
        """A matrix [*rows, columns], or several stacked ones."""
        if precision in FLOATS:
            return Stored(precision, self._array(f"{name}.weight", FLOATS[precision], (*rows, columns)), None, columns)
        blocks = -(-columns // self._weights.block)
        packed = (*rows, blocks, self._weights.block * BITS[precision] // 8)
        scales = self._array(f"{name}.weight.scale", "F32", (*rows, blocks))
        return Stored(precision, self._array(f"{name}.weight", "U8", packed), scales, columns)

    def _array(self, name: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor on the device."""
        found = torch.from_numpy(np.array(self._file.array(name, dtype, shape)))
        return (found.view(torch.bfloat16) if dtype == "BF16" else found).to(self._device)

    def _floats(self, name: str, *shape: int) -> Tensor:
        return self._array(name, "F32", shape)

    def _vector(self, name: str, *shape: int) -> Tensor:
        """Floats that are computed with."""
        return self._floats(name, *shape).to(self._dtype)

    def _optional(self, name: str, size: int) -> Tensor | None:
        return self._vector(name, size) if name in self._file.names else None
