"""The shapes that are compared: dimensions, what a token reads, what a prompt or a window computes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from salmonrun.training.starting.presets import LLAMA_3_2_1B

Tensors = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class LanguageShape:
    """An LLM of the Llama family, as its transformers config describes it."""

    name: str
    config: dict[str, Any]
    prompts: tuple[int, ...]  # tokens; the second one is followed by decoding
    tokens: int  # decoded greedily, at most

    @property
    def kv_dim(self) -> int:
        """Width of the keys."""
        heads = self.config["num_attention_heads"]
        return int(self.config["hidden_size"] // heads * self.config["num_key_value_heads"])

    def tensors(self) -> Tensors:
        """Name and dimensions of each stored tensor, as transformers names them."""
        dim, ffn, vocab = (self.config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
        widths = {"q": dim, "k": self.kv_dim, "v": self.kv_dim}
        yield "model.embed_tokens.weight", (vocab, dim)
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            for name, width in widths.items():
                yield f"{prefix}self_attn.{name}_proj.weight", (width, dim)
                if self.config["model_type"] == "qwen2":
                    yield f"{prefix}self_attn.{name}_proj.bias", (width,)
            yield f"{prefix}self_attn.o_proj.weight", (dim, dim)
            yield f"{prefix}mlp.gate_proj.weight", (ffn, dim)
            yield f"{prefix}mlp.up_proj.weight", (ffn, dim)
            yield f"{prefix}mlp.down_proj.weight", (dim, ffn)
            yield f"{prefix}input_layernorm.weight", (dim,)
            yield f"{prefix}post_attention_layernorm.weight", (dim,)
        yield "model.norm.weight", (dim,)

    def flop(self, tokens: int) -> float:
        """Of a prompt whose last position alone gets logits; causal attention computes half of its square."""
        dim, layers = self.config["hidden_size"], self.config["num_hidden_layers"]
        head = self.config["vocab_size"] * dim
        body = sum(math.prod(dims) for name, dims in self.tensors() if len(dims) == 2 and "embed" not in name)
        return float(2.0 * (body * tokens + head) + layers * 2.0 * tokens**2 * dim)


@dataclass(frozen=True)
class EncoderShape:
    """A Whisper encoder, as its transformers config describes it."""

    name: str
    config: dict[str, Any]
    seconds: tuple[int, ...]  # of audio

    def tensors(self) -> Tensors:
        """Name and dimensions of each stored tensor: the encoder, and a small decoder that converters ask for."""
        dim, ffn = self.config["d_model"], self.config["encoder_ffn_dim"]
        encoder, decoder = "model.encoder.", "model.decoder."
        yield f"{encoder}conv1.weight", (dim, self.config["num_mel_bins"], 3)
        yield f"{encoder}conv1.bias", (dim,)
        yield f"{encoder}conv2.weight", (dim, dim, 3)
        yield f"{encoder}conv2.bias", (dim,)
        yield f"{encoder}embed_positions.weight", (self.config["max_source_positions"], dim)
        for layer in range(self.config["encoder_layers"]):
            yield from _block(f"{encoder}layers.{layer}.", dim, ffn, ("self_attn",))
        yield from _norm(f"{encoder}layer_norm", dim)
        yield f"{decoder}embed_tokens.weight", (self.config["vocab_size"], dim)
        yield f"{decoder}embed_positions.weight", (self.config["max_target_positions"], dim)
        for layer in range(self.config["decoder_layers"]):
            ffn = self.config["decoder_ffn_dim"]
            yield from _block(f"{decoder}layers.{layer}.", dim, ffn, ("self_attn", "encoder_attn"))
        yield from _norm(f"{decoder}layer_norm", dim)

    def flop(self, seconds: int) -> float:
        """Of a window: 100 log-mel frames a second, 50 after the second convolution, each attending to all."""
        dim, ffn, layers = (self.config[key] for key in ("d_model", "encoder_ffn_dim", "encoder_layers"))
        frames = 50 * seconds
        convolutions = 2.0 * 3 * dim * (2 * frames * self.config["num_mel_bins"] + frames * dim)
        return float(convolutions + layers * (2.0 * frames * (4 * dim**2 + 2 * dim * ffn) + 4.0 * frames**2 * dim))


Shape = LanguageShape | EncoderShape


def _block(prefix: str, dim: int, ffn: int, attentions: tuple[str, ...]) -> Tensors:
    for attention in attentions:
        for name in ("q", "k", "v", "out"):
            yield f"{prefix}{attention}.{name}_proj.weight", (dim, dim)
            if name != "k":  # Whisper's keys have no bias
                yield f"{prefix}{attention}.{name}_proj.bias", (dim,)
        yield from _norm(f"{prefix}{attention}_layer_norm", dim)
    yield f"{prefix}fc1.weight", (ffn, dim)
    yield f"{prefix}fc1.bias", (ffn,)
    yield f"{prefix}fc2.weight", (dim, ffn)
    yield f"{prefix}fc2.bias", (dim,)
    yield from _norm(f"{prefix}final_layer_norm", dim)


def _norm(name: str, dim: int) -> Tensors:
    yield f"{name}.weight", (dim,)
    yield f"{name}.bias", (dim,)


LLAMA = LLAMA_3_2_1B | {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "torch_dtype": "bfloat16",
}
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "torch_dtype": "bfloat16",
}
WHISPER = {
    "architectures": ["WhisperForConditionalGeneration"],
    "model_type": "whisper",
    "vocab_size": 1024,
    "num_mel_bins": 128,
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "decoder_layers": 1,
    "decoder_attention_heads": 20,
    "decoder_ffn_dim": 1280,
    "max_source_positions": 1500,
    "max_target_positions": 64,
    "activation_function": "gelu",
    "scale_embedding": False,
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
    "decoder_start_token_id": 256,
    "torch_dtype": "float16",
}
WHISPER_BASE = WHISPER | {
    "num_mel_bins": 80,
    "d_model": 512,
    "encoder_layers": 6,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 512,
}
TINY_LLAMA = LLAMA | {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
}
TINY_WHISPER = WHISPER | {
    "vocab_size": 512,
    "num_mel_bins": 80,
    "d_model": 128,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 256,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 128,
}

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        LanguageShape("Llama-3.2-1B", LLAMA, (32, 128, 512), 32),
        LanguageShape("Qwen2.5-0.5B", QWEN, (32, 128, 512), 32),
        EncoderShape("Whisper-large-v3-turbo", WHISPER, (10, 30)),
        EncoderShape("Whisper-base", WHISPER_BASE, (10, 30)),
        LanguageShape("tiny-llama", TINY_LLAMA, (4, 16), 4),
        EncoderShape("tiny-whisper", TINY_WHISPER, (10, 30)),
    )
}
GROUPS = {
    "full": ("Llama-3.2-1B", "Qwen2.5-0.5B", "Whisper-large-v3-turbo", "Whisper-base"),
    "tiny": ("tiny-llama", "tiny-whisper"),
}
