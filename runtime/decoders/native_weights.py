"""A bundle's weights for the native decoder, as the kernels take them: docs/bundle.md, layout `t16`."""

from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from salmonrun.kernels.cpu import load_native
from salmonrun.kernels.formats import GROUP
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.errors import BundleError, MissingExtraError
from salmonrun.runtime.manifest import LlmSpec, NativeWeights
from salmonrun.runtime.tensor_file import TensorFile

if TYPE_CHECKING:
    from salmonrun.kernels.cpu import _native

BITS = {"int4": 4, "int8": 8}


def kernels() -> ModuleType:
    """The extension.

    Raises:
        MissingExtraError: it was not built.
    """
    try:
        return load_native()
    except ImportError as error:
        raise MissingExtraError(str(error)) from error


def load_model(bundle: Bundle, instruction_set: str, threads: int) -> "_native.Model":
    """The extension's model, its matrices where the file is mapped.

    Raises:
        BundleError: there are no weights for it, or they do not fit the manifest or together.
        MissingExtraError: the kernels were not built.
    """
    native, llm = kernels(), bundle.manifest.llm
    weights = llm.weights.native
    if weights is None:
        raise BundleError(
            f"{bundle.folder} has no weights for the native decoder, only for {', '.join(llm.weights.decoders)}: "
            "choose another decoder, or export with --decoder native"
        )
    if llm.experts:
        raise BundleError(f"{bundle.folder} has experts, which the native decoder does not run yet; export for onnx")
    reader = _Reader(TensorFile(bundle.path(weights.file)), llm, weights)
    try:
        model: _native.Model = native.Model(
            layers=[reader.layer(i) for i in range(llm.layers)],
            norm=reader.vector("model.norm.weight", llm.dim),
            head=reader.matrix("lm_head", llm.vocab_size, llm.dim, BITS[weights.lm_head]),
            cos=reader.rope("cos"),
            sin=reader.rope("sin"),
            heads=llm.heads,
            kv_heads=llm.kv_heads,
            head_dim=llm.head_dim,
            eps=llm.eps,
            instruction_set=instruction_set,
            threads=threads,
        )
    except BundleError:  # a ValueError, too, and complete
        raise
    except ValueError as error:
        raise BundleError(f"{bundle.folder}/{weights.file}: {error}") from error
    return model


class _Reader:
    """Tensors by the names of transformers' model."""

    def __init__(self, file: TensorFile, llm: LlmSpec, weights: NativeWeights) -> None:
        self._file = file
        self._llm = llm
        self._weights = weights
        self._native = kernels()

    def layer(self, index: int) -> "_native.Layer":
        """One decoder layer: what it has beyond the least is told by the tensors' names."""
        llm, prefix = self._llm, f"model.layers.{index}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        q_dim, kv_dim = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
        # No tensor has its exact width, and none needs to: what fills its last group of 16 up is zero.
        intermediate = GROUP * self._file.first_dimension(f"{mlp}gate_proj.weight")
        layer: _native.Layer = self._native.Layer(
            input_norm=self.vector(f"{prefix}input_layernorm.weight", llm.dim),
            post_norm=self.vector(f"{prefix}post_attention_layernorm.weight", llm.dim),
            q=self.matrix(f"{attention}q_proj", q_dim, llm.dim),
            k=self.matrix(f"{attention}k_proj", kv_dim, llm.dim),
            v=self.matrix(f"{attention}v_proj", kv_dim, llm.dim),
            o=self.matrix(f"{attention}o_proj", llm.dim, q_dim),
            gate=self.matrix(f"{mlp}gate_proj", intermediate, llm.dim),
            up=self.matrix(f"{mlp}up_proj", intermediate, llm.dim),
            down=self.matrix(f"{mlp}down_proj", llm.dim, intermediate),
            q_norm=self._optional(f"{attention}q_norm.weight", llm.head_dim),
            k_norm=self._optional(f"{attention}k_norm.weight", llm.head_dim),
            window=llm.windows[index],
        )
        return layer

    def matrix(self, name: str, rows: int, columns: int, bits: int | None = None) -> "_native.Matrix":
        """A quantized matrix and its bias, if it has one."""
        weights, bits = self._weights, bits or BITS[self._weights.precision]
        groups, blocks = -(-rows // GROUP), -(-columns // weights.block)
        shape = (groups, blocks * weights.block // 32, bits, 64)
        matrix: _native.Matrix = self._native.Matrix(
            self._file.array(f"{name}.weight", "U8", shape),
            self._file.array(f"{name}.weight.scale", "F16", (groups, blocks, GROUP)).view(np.uint16),
            rows,
            columns,
            bits,
            weights.block,
            weights.activation_block,
            self._optional(f"{name}.bias", rows),
        )
        return matrix

    def vector(self, name: str, size: int) -> F32:
        """[size]."""
        return self._file.array(name, "F32", (size,))

    def rope(self, name: str) -> F32:
        """[max_length, head_dim / 2]."""
        return self._file.array(f"rope.{name}", "F32", (self._llm.max_length, self._llm.head_dim // 2))

    def _optional(self, name: str, size: int) -> F32 | None:
        return self.vector(name, size) if name in self._file.names else None
