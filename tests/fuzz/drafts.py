"""A native bundle in pieces that can be changed one by one: what the manifest says of the LLM, header, and bytes."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.manifest import (
    EmbeddingSpec,
    LlmSpec,
    LlmWeights,
    NativeWeights,
)
from salmonrun.runtime.schema import from_dict, to_dict
from salmonrun.runtime.tensor_file import ALIGNMENT, DTYPES
from tests.helpers.bundles import bundle_of

Rng = np.random.Generator
Tensors = dict[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape

WEIGHTS, EMBEDDING = "native.bin", "embed_tokens.bin"
BITS = {"int4": 4, "int8": 8}


@dataclass
class Draft:
    """What will be written. Changes may leave it as inconsistent as they like."""

    llm: dict[str, Any]  # JSON of LlmSpec
    header: dict[str, Any]
    data: bytearray

    def content(self) -> bytearray:
        """The file of weights."""
        text = json.dumps(self.header).encode()
        text = text.ljust(-(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT - 8)
        return bytearray(len(text).to_bytes(8, "little") + text + self.data)


def random_draft(rng: Rng) -> Draft:
    """A model of random sizes and bytes that is as it says: it loads, and computes something."""
    llm = _random_llm(rng)
    tensors = _tensors(rng, llm)
    sizes = {name: math.prod(shape) * DTYPES[dtype].itemsize for name, (dtype, shape) in tensors.items()}
    # Tensors may share bytes, so that the file is small however large the model is.
    room = max(-(-max(sizes.values()) // ALIGNMENT), int(rng.integers(1, 128))) * ALIGNMENT
    header = {}
    for name, (dtype, shape) in tensors.items():
        begin = ALIGNMENT * int(rng.integers(0, (room - sizes[name]) // ALIGNMENT + 1))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + sizes[name]]}
    # Halves and floats of moderate size more often than not: infinities would hide what is behind them.
    data = rng.integers(0, 256, room, np.uint8)
    data[3::4] = rng.choice(np.array([0x3C, 0x3D, 0xBC, 0xBD], np.uint8), room // 4)
    return Draft(llm, header, bytearray(data.tobytes()))


def _random_llm(rng: Rng) -> dict[str, Any]:
    kv_heads, layers = int(rng.choice([1, 1, 2, 3])), int(rng.integers(1, 3))
    block = int(rng.choice([32, 64, 128]))
    weights = NativeWeights(
        WEIGHTS,
        "t16",
        block,  # type: ignore[arg-type]
        int(rng.choice([factor for factor in (32, 64, 128, 256) if factor >= block])),  # type: ignore[arg-type]
        *(str(one) for one in rng.choice(list(BITS), 2)),  # type: ignore[arg-type]
    )
    spec = LlmSpec(
        vocab_size=int(rng.choice([1, 15, 16, 17, 70])),
        dim=int(rng.choice([1, 16, 31, 32, 33, 64, 100])),
        layers=layers,
        heads=kv_heads * int(rng.integers(1, 6)),
        kv_heads=kv_heads,
        head_dim=int(rng.choice([16, 16, 32, 48])),
        eps=1e-5,
        windows=tuple(None if rng.random() < 0.7 else int(rng.integers(1, 40)) for _ in range(layers)),
        experts=None,
        max_length=int(rng.choice([1, 5, 64, 70])),
        embedding=EmbeddingSpec(EMBEDDING, "float32", 1, 1),  # not asked: inputs are embeddings
        weights=LlmWeights(None, weights),
    )
    found: dict[str, Any] = to_dict(spec)
    return found


def _tensors(rng: Rng, llm: dict[str, Any]) -> Tensors:
    """What docs/bundle.md asks for, with or without what is optional."""
    weights, dim, head_dim = llm["weights"]["native"], llm["dim"], llm["head_dim"]
    q_dim, kv_dim, intermediate = llm["heads"] * head_dim, llm["kv_heads"] * head_dim, 16 * int(rng.integers(1, 5))
    biases, head_norms = rng.random(2) < 0.5
    tensors: Tensors = {
        "model.norm.weight": ("F32", (dim,)),
        "rope.cos": ("F32", (llm["max_length"], head_dim // 2)),
        "rope.sin": ("F32", (llm["max_length"], head_dim // 2)),
    }

    def matrix(name: str, rows: int, columns: int, precision: str, bias: bool = False) -> None:
        groups, blocks = -(-rows // 16), -(-columns // weights["block"])
        tensors[f"{name}.weight"] = ("U8", (groups, blocks * weights["block"] // 32, BITS[precision], 64))
        tensors[f"{name}.weight.scale"] = ("F16", (groups, blocks, 16))
        if bias:
            tensors[f"{name}.bias"] = ("F32", (rows,))

    matrix("lm_head", llm["vocab_size"], dim, weights["lm_head"])
    for layer in range(llm["layers"]):
        prefix = f"model.layers.{layer}."
        tensors[f"{prefix}input_layernorm.weight"] = tensors[f"{prefix}post_attention_layernorm.weight"] = (
            "F32",
            (dim,),
        )
        if head_norms:
            tensors[f"{prefix}self_attn.q_norm.weight"] = tensors[f"{prefix}self_attn.k_norm.weight"] = (
                "F32",
                (head_dim,),
            )
        for part, rows in (("q", q_dim), ("k", kv_dim), ("v", kv_dim)):
            matrix(f"{prefix}self_attn.{part}_proj", rows, dim, weights["precision"], bool(biases))
        matrix(f"{prefix}self_attn.o_proj", dim, q_dim, weights["precision"], bool(biases))
        for part in ("gate", "up"):
            matrix(f"{prefix}mlp.{part}_proj", intermediate, dim, weights["precision"], bool(biases))
        matrix(f"{prefix}mlp.down_proj", dim, intermediate, weights["precision"], bool(biases))
    return tensors


def write(folder: Path, llm: dict[str, Any], content: bytes) -> Bundle:
    """The bundle, as far as the decoder asks for it; its manifest is parsed as `open_bundle` does.

    Raises:
        ConfigError: the manifest cannot be one.
    """
    spec = from_dict(LlmSpec, llm, "bundle.json.llm", complete=True)
    (folder / WEIGHTS).write_bytes(content)
    (folder / EMBEDDING).write_bytes(bytes(4))
    return bundle_of(folder, spec, {})
