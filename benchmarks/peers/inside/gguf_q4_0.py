"""LLM folder to GGUF, quantized to Q4_0 by llama.cpp itself: its default mixture keeps the output layer in Q6_K.

python gguf_q4_0.py TRANSFORMERS OUT
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def main(source: str, out: str) -> None:
    """Write bfloat16, then quantize."""
    plain, quantized = f"{out}/bf16.gguf", f"{out}/q4_0.gguf"
    write_gguf(Path(source), plain)
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    code = llama_cpp.llama_model_quantize(plain.encode(), quantized.encode(), options)
    if code:
        raise SystemExit(f"llama_model_quantize returned {code}")
    Path(plain).unlink()


def write_gguf(source: Path, path: str) -> None:
    """The folder's tensors under llama.cpp's names, matrices in bfloat16."""
    config = json.loads((source / "config.json").read_text())
    kind = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[config["model_type"]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[kind])
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")  # prompts are token ids
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    for name, bits in bfloat16_tensors(source / "model.safetensors"):
        if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            bits = interleaved(bits, heads if "q_proj" in name else kv_heads)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise SystemExit(f"llama.cpp has no name for {name}")
        if bits.ndim == 1:
            writer.add_tensor(target, (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            writer.add_tensor(target, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    if scaling := config.get("rope_scaling"):
        writer.add_tensor("rope_freqs.weight", llama3_factors(scaling, config["rope_theta"], head_dim))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bfloat16_tensors(path: Path) -> Iterator[tuple[str, Array]]:
    """Name and bits of every tensor: a length, a header in JSON, then the bytes (safetensors' format)."""
    length = int(np.fromfile(path, np.uint64, 1)[0])
    header = json.loads(np.fromfile(path, np.uint8, length, offset=8).tobytes())
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    for name, entry in header.items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            yield name, data[first:end].view(np.uint16).reshape(entry["shape"])


def interleaved(rows: Array, heads: int) -> Array:
    """Rows in the order of llama.cpp's rotation: pairs side by side (its converter's `permute`)."""
    return np.ascontiguousarray(rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape))


def llama3_factors(scaling: dict[str, Any], theta: float, head_dim: int) -> Array:
    """By what Llama 3's context extension divides each rotary frequency (transformers' rope_type "llama3")."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * theta ** -(np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((turns / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - smooth) / scaling["factor"] + smooth), np.float32)


if __name__ == "__main__":
    main(*sys.argv[1:])
