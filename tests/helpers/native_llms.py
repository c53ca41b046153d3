"""Small quantized LLMs of random weights: the reference's, and the extension's of the same bytes."""

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file

from salmonrun.kernels import reference
from salmonrun.kernels.cpu import load_native
from salmonrun.kernels.formats import F32, SUPER_BLOCK, quantize_nf4_t16, quantize_super_t16, quantize_t16
from salmonrun.runtime.bundle import Bundle

ACTIVATIONS = 64


@dataclass(frozen=True)
class Shape:
    """Odd on purpose: nothing is a whole number of blocks."""

    dim: int = 80
    intermediate: int = 101
    vocab: int = 53
    layers: int = 2
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 48
    max_length: int = 200
    nf4: bool = False
    super_blocks: bool = False  # of int4
    bits: Literal[4, 8] = 4
    head_bits: Literal[4, 8] = 8
    block: int = 32
    activation_block: int = ACTIVATIONS
    biases: bool = True
    head_norms: bool = True
    window: int | None = None  # of odd layers
    experts: int = 0  # 0: none; of odd layers otherwise
    shared_expert: bool = False
    cache_bits: Literal[8, 16] = 16


def random_linear(
    rng: np.random.Generator, rows: int, columns: int, bits: int, block: int, activations: int, bias: bool
) -> reference.Linear:
    weight = rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)
    packed, scales = quantize_t16(weight, bits, block)
    shift = rng.normal(0, 0.1, rows).astype(np.float32) if bias else None
    return reference.Linear(packed, scales, rows, columns, activations, shift)


def random_super(rng: np.random.Generator, rows: int, columns: int, bias: bool) -> reference.Linear:
    """Of blocks that have all kinds of multiples."""
    sizes = rng.choice([0, 0.1, 1], (rows, -(-columns // 32))).repeat(32, axis=1)[:, :columns]
    weight = rng.normal(0, columns**-0.5, (rows, columns)) * sizes
    packed, multiples, scales = quantize_super_t16(weight.astype(np.float32), 32)
    shift = rng.normal(0, 0.1, rows).astype(np.float32) if bias else None
    return reference.Linear(packed, scales, rows, columns, SUPER_BLOCK, shift, multiples)


def random_nf4(rng: np.random.Generator, rows: int, columns: int, block: int, bias: bool) -> reference.Nf4Linear:
    weight = rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)
    shift = rng.normal(0, 0.1, rows).astype(np.float32) if bias else None
    return reference.Nf4Linear(*quantize_nf4_t16(weight, block), rows, columns, shift)


def random_model(shape: Shape, seed: int = 0) -> reference.Model:
    rng = np.random.default_rng(seed)

    def linear(rows: int, columns: int) -> reference.Product:
        if shape.nf4:
            return random_nf4(rng, rows, columns, shape.block, shape.biases)
        if shape.super_blocks:
            return random_super(rng, rows, columns, shape.biases)
        return random_linear(rng, rows, columns, shape.bits, shape.block, shape.activation_block, shape.biases)

    def norm(size: int) -> F32:
        return rng.uniform(0.5, 1.5, size).astype(np.float32)

    def mlp(intermediate: int) -> reference.Mlp:
        gate, up = (linear(intermediate, shape.dim) for _ in range(2))
        return reference.Mlp(gate, up, linear(shape.dim, intermediate))

    def mixture() -> reference.Mixture:
        router = rng.normal(0, 2 * shape.dim**-0.5, (shape.experts, shape.dim)).astype(np.float32)
        experts = [mlp(shape.intermediate // 2) for _ in range(shape.experts)]
        if not shape.shared_expert:
            return reference.Mixture(router, experts, 2, normalised=True)
        gate = rng.normal(0, shape.dim**-0.5, (1, shape.dim)).astype(np.float32)
        return reference.Mixture(router, experts, 3, False, mlp(shape.intermediate - 40), gate)

    def layer(index: int) -> reference.Layer:
        width = shape.head_dim
        return reference.Layer(
            input_norm=norm(shape.dim),
            q=linear(shape.heads * width, shape.dim),
            k=linear(shape.kv_heads * width, shape.dim),
            v=linear(shape.kv_heads * width, shape.dim),
            o=linear(shape.dim, shape.heads * width),
            post_norm=norm(shape.dim),
            mlp=mixture() if shape.experts and index % 2 else mlp(shape.intermediate),
            q_norm=norm(width) if shape.head_norms else None,
            k_norm=norm(width) if shape.head_norms else None,
            window=shape.window if index % 2 else None,
        )

    angles = np.arange(shape.max_length)[:, None] * 1e4 ** -(np.arange(shape.head_dim // 2) * 2 / shape.head_dim)
    return reference.Model(
        layers=[layer(i) for i in range(shape.layers)],
        norm=norm(shape.dim),
        head=random_linear(rng, shape.vocab, shape.dim, shape.head_bits, shape.block, shape.activation_block, False),
        cos=np.cos(angles).astype(np.float32),
        sin=np.sin(angles).astype(np.float32),
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        eps=1e-5,
        cache_dtype=np.int8 if shape.cache_bits == 8 else np.float16,
    )


def native_matrix(
    linear: reference.Linear | reference.Nf4Linear | reference.FloatLinear | reference.Bfloat16Linear,
) -> Any:
    if isinstance(linear, reference.Bfloat16Linear):
        return load_native().Matrix.bfloat16(linear.packed, linear.rows, linear.columns, linear.bias)
    if isinstance(linear, reference.FloatLinear):
        return load_native().Matrix.floats(linear.packed, linear.rows, linear.columns, linear.bias)
    if isinstance(linear, reference.Nf4Linear):
        sizes = (linear.rows, linear.columns, linear.block)
        return load_native().Matrix.nf4(linear.packed, linear.scales, *sizes, linear.bias)
    scales, outer = linear.scales.view(np.uint16), (linear.rows, linear.columns)
    if linear.multiples is not None:
        return load_native().Matrix.super_blocks(linear.packed, linear.multiples, scales, *outer, linear.bias)
    integers = (linear.packed.shape[2], linear.block, linear.activation_block)
    return load_native().Matrix(linear.packed, scales, *outer, *integers, linear.bias)


def converted(part: Any) -> Any:
    """The extension's own of a part of the reference's model."""
    if isinstance(part, list):
        return [converted(one) for one in part]
    if isinstance(part, reference.Linear | reference.Nf4Linear):
        return native_matrix(part)
    if isinstance(part, reference.Layer | reference.Mlp | reference.Mixture):
        return getattr(load_native(), type(part).__name__)(**parts_of(part))
    return part


def parts_of(whole: Any) -> dict[str, Any]:
    return {field.name: converted(getattr(whole, field.name)) for field in fields(whole) if field.name != "cache_dtype"}


class NativeModel:
    """The extension's model, with whole sequences as the unit."""

    def __init__(self, model: reference.Model, instruction_set: str, threads: int) -> None:
        bits = 8 if model.cache_dtype is np.int8 else 16
        parts = parts_of(model)
        self.native = load_native().Model(**parts, instruction_set=instruction_set, threads=threads, cache_bits=bits)
        self.vocab = len(model.logits(np.zeros((1, len(model.norm)), np.float32))[0])

    def forward(self, *chunks: tuple[int, F32, int]) -> list[F32]:
        """Chunks are (sequence, embeds [n, dim], logits wanted)."""
        table = np.array([(sequence, len(embeds), wanted) for sequence, embeds, wanted in chunks], np.int32)
        logits = np.empty((max(0, int(table[:, 2].sum())), self.vocab), np.float32)
        self.native.forward(table, np.concatenate([embeds for _, embeds, _ in chunks]), logits)
        return np.split(logits, np.cumsum(table[:-1, 2]))

    def logits(self, embeds: F32, *cuts: int) -> F32:
        """After every position, the sequence appended in pieces."""
        sequence = self.native.open()
        pieces = [self.forward((sequence, part, len(part)))[0] for part in np.split(embeds, cuts) if len(part)]
        self.native.close(sequence)
        return np.concatenate(pieces)


def stored_model(bundle: Bundle) -> reference.Model:
    """What a bundle's native weights say, read by safetensors' own library."""
    llm, weights = bundle.manifest.llm, bundle.manifest.llm.weights.native
    assert weights is not None
    tensors = load_file(bundle.path(weights.file))
    activations = weights.activation_block

    def linear(name: str, rows: int, columns: int, expert: Any = ...) -> reference.Product:
        packed, scales = tensors[f"{name}.weight"][expert], tensors[f"{name}.weight.scale"][expert]
        if scales.dtype == np.float32:
            return reference.Nf4Linear(packed, scales, rows, columns, tensors.get(f"{name}.bias"))
        multiples = tensors.get(f"{name}.weight.multiple")
        own = None if multiples is None else multiples[expert]
        return reference.Linear(packed, scales, rows, columns, activations, tensors.get(f"{name}.bias"), own)

    def mlp(prefix: str, expert: Any = ...) -> reference.Mlp:
        width = 16 * len(tensors[f"{prefix}gate_proj.weight"][expert])
        gate, up = (linear(f"{prefix}{part}_proj", width, llm.dim, expert) for part in ("gate", "up"))
        return reference.Mlp(gate, up, linear(f"{prefix}down_proj", llm.dim, width, expert))

    def mlp_or_mixture(prefix: str) -> reference.Mlp | reference.Mixture:
        router = tensors.get(f"{prefix}gate.weight")
        if router is None:
            return mlp(prefix)
        assert llm.experts is not None
        experts = [mlp(f"{prefix}experts.", expert) for expert in range(len(router))]
        choice = (llm.experts.per_token, llm.experts.normalised)
        gate = tensors.get(f"{prefix}shared_expert_gate.weight")
        shared = None if gate is None else mlp(f"{prefix}shared_expert.")
        return reference.Mixture(router, experts, *choice, shared, gate)

    def layer(index: int) -> reference.Layer:
        prefix = f"model.layers.{index}."
        attention = f"{prefix}self_attn."
        q_dim, kv_dim = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
        return reference.Layer(
            input_norm=tensors[f"{prefix}input_layernorm.weight"],
            q=linear(f"{attention}q_proj", q_dim, llm.dim),
            k=linear(f"{attention}k_proj", kv_dim, llm.dim),
            v=linear(f"{attention}v_proj", kv_dim, llm.dim),
            o=linear(f"{attention}o_proj", llm.dim, q_dim),
            post_norm=tensors[f"{prefix}post_attention_layernorm.weight"],
            mlp=mlp_or_mixture(f"{prefix}mlp."),
            q_norm=tensors.get(f"{attention}q_norm.weight"),
            k_norm=tensors.get(f"{attention}k_norm.weight"),
            window=llm.windows[index],
        )

    return reference.Model(
        layers=[layer(i) for i in range(llm.layers)],
        norm=tensors["model.norm.weight"],
        head=linear("lm_head", llm.vocab_size, llm.dim),
        cos=tensors["rope.cos"],
        sin=tensors["rope.sin"],
        heads=llm.heads,
        kv_heads=llm.kv_heads,
        head_dim=llm.head_dim,
        eps=llm.eps,
    )
