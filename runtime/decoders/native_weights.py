"""A bundle's weights for the native decoder, as the kernels take them: docs/bundle.md, layout `t16`."""

from typing import TYPE_CHECKING

from salmonrun.kernels.formats import GROUP, LINE
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.errors import BundleError
from salmonrun.runtime.manifest import LlmSpec, NativeWeights
from salmonrun.runtime.matrices import MatrixReader, kernels
from salmonrun.runtime.tensor_file import TensorFile

if TYPE_CHECKING:
    from salmonrun.kernels.cpu import _native


def load_model(
    bundle: Bundle, instruction_set: str, threads: int, cache_bits: int
) -> "tuple[_native.Model, TensorFile]":
    """The extension's model, and the file where its matrices are mapped.

    Raises:
        BundleError: there are no weights for it, or they do not fit the manifest or together.
        MissingExtraError: the kernels were not built.
    """
    llm = bundle.manifest.llm
    weights = llm.weights.native
    if weights is None:
        raise BundleError(
            f"{bundle.folder} has no weights for the native decoder, only for {', '.join(llm.weights.decoders)}: "
            "choose another decoder, or export with --decoder native"
        )
    file = TensorFile(bundle.path(weights.file), bundle.private)
    reader = LlmReader(file, llm, weights)
    try:
        return reader.model(instruction_set, threads, cache_bits), file
    except BundleError:  # a ValueError, too, and complete
        raise
    except ValueError as error:
        raise BundleError(f"{bundle.folder}/{weights.file}: {error}") from error


class LlmReader:
    """Tensors by the names of transformers' model."""

    def __init__(self, file: TensorFile, llm: LlmSpec, weights: NativeWeights) -> None:
        self._file = file
        self._llm = llm
        self._weights = weights
        self._matrices = MatrixReader(file, weights.block, weights.activation_block, weights.super_block)
        self._native = kernels()
        for name in weights.int8:
            if f"{name}.weight" not in file.names:
                raise BundleError(f"the manifest has {name!r} in int8, and there is no such matrix; export it again")

    def model(self, instruction_set: str, threads: int, cache_bits: int) -> "_native.Model":
        """All of it; ValueError where the parts do not fit together."""
        llm = self._llm
        model: _native.Model = self._native.Model(
            layers=[self.layer(i) for i in range(llm.layers)],
            norm=self.vector("model.norm.weight", llm.dim),
            head=self.matrix("lm_head", llm.vocab_size, llm.dim, self._weights.lm_head),
            cos=self.rope("cos"),
            sin=self.rope("sin"),
            heads=llm.heads,
            kv_heads=llm.kv_heads,
            head_dim=llm.head_dim,
            eps=llm.eps,
            instruction_set=instruction_set,
            threads=threads,
            cache_bits=cache_bits,
        )
        return model

    def layer(self, index: int) -> "_native.Layer":
        """One decoder layer: what it has beyond the least is told by the tensors' names."""
        llm, prefix = self._llm, f"model.layers.{index}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        q_dim, kv_dim = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
        layer: _native.Layer = self._native.Layer(
            input_norm=self.vector(f"{prefix}input_layernorm.weight", llm.dim),
            post_norm=self.vector(f"{prefix}post_attention_layernorm.weight", llm.dim),
            q=self.matrix(f"{attention}q_proj", q_dim, llm.dim),
            k=self.matrix(f"{attention}k_proj", kv_dim, llm.dim),
            v=self.matrix(f"{attention}v_proj", kv_dim, llm.dim),
            o=self.matrix(f"{attention}o_proj", llm.dim, q_dim),
            mlp=self._mixture(mlp) if f"{mlp}gate.weight" in self._file.names else self._mlp(mlp),
            q_norm=self._optional(f"{attention}q_norm.weight", llm.head_dim),
            k_norm=self._optional(f"{attention}k_norm.weight", llm.head_dim),
            window=llm.windows[index],
        )
        return layer

    def matrix(self, name: str, rows: int, columns: int, precision: str | None = None) -> "_native.Matrix":
        """A quantized matrix and its bias, if it has one."""
        return self._matrices.matrix(name, rows, columns, precision or self._weights.precision_of(name))

    def _mlp(self, prefix: str) -> "_native.Mlp":
        # No tensor has its exact width, and none needs to: what fills its last group of 16 up is zero.
        width, dim = GROUP * self._file.dimension(f"{prefix}gate_proj.weight", 0), self._llm.dim
        mlp: _native.Mlp = self._native.Mlp(
            gate=self.matrix(f"{prefix}gate_proj", width, dim),
            up=self.matrix(f"{prefix}up_proj", width, dim),
            down=self.matrix(f"{prefix}down_proj", dim, width),
        )
        return mlp

    def _mixture(self, prefix: str) -> "_native.Mixture":
        llm, name = self._llm, f"{prefix}gate.weight"
        if llm.experts is None:
            raise BundleError(f"{name} is there, but the manifest's llm.experts is null; export the bundle again")
        count, shared = self._file.dimension(name, 0), f"{prefix}shared_expert"
        has_shared = f"{shared}_gate.weight" in self._file.names
        mixture: _native.Mixture = self._native.Mixture(
            router=self._file.array(name, "F32", (count, llm.dim)),
            experts=self._experts(f"{prefix}experts.", count),
            per_token=llm.experts.per_token,
            normalised=llm.experts.normalised,
            shared=self._mlp(f"{shared}.") if has_shared else None,
            shared_gate=self._file.array(f"{shared}_gate.weight", "F32", (1, llm.dim)) if has_shared else None,
        )
        return mixture

    def _experts(self, prefix: str, count: int) -> "list[_native.Mlp]":
        width, dim = GROUP * self._file.dimension(f"{prefix}gate_proj.weight", 1), self._llm.dim
        gates, ups, downs = (
            self._matrices.stacked(f"{prefix}{part}_proj", count, *shape, self._weights.precision)
            for part, shape in (("gate", (width, dim)), ("up", (width, dim)), ("down", (dim, width)))
        )
        parts = zip(gates, ups, downs, strict=True)
        return [self._native.Mlp(gate=gate, up=up, down=down) for gate, up, down in parts]

    def saved_bytes(self, matrix: str) -> int:
        """What 4 bits instead of 8 spare of a matrix."""
        groups, lines = (self._file.dimension(f"{matrix}.weight", axis) for axis in (0, 1))
        return groups * lines * 4 * LINE

    @property
    def vocab_size(self) -> int:
        """Logits of a position."""
        return self._llm.vocab_size

    def vector(self, name: str, size: int) -> F32:
        """[size]."""
        return self._matrices.vector(name, size)

    def rope(self, name: str) -> F32:
        """[max_length, head_dim / 2]."""
        return self._matrices.vector(f"rope.{name}", self._llm.max_length, self._llm.head_dim // 2)

    def _optional(self, name: str, size: int) -> F32 | None:
        return self._matrices.optional(name, size)
