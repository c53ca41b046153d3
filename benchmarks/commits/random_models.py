"""Small models of any dimensions: what one commit computes in another way than the next shows in some of them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from salmonrun.runtime.config import AudioConfig, BlockConfig, PromptConfig, WindowConfig
from salmonrun.training.model.config import LoraConfig, ModelConfig, QFormerConfig, WhisperConfig
from salmonrun.training.model.encoders.beats import BeatsConfig
from salmonrun.training.starting.presets import TASKS

Pick = Callable[..., Any]
EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
# Half of the models are Llamas.
FAMILIES: tuple[dict[str, Any], ...] = (
    *({"model_type": "llama"},) * 6,
    {"model_type": "mistral", "sliding_window": None},
    {"model_type": "mistral", "sliding_window": 40},
    {"model_type": "qwen2"},
    {"model_type": "qwen3"},
    {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2},
    {"model_type": "qwen3_moe", "num_experts": 4, **EXPERTS},
)


def random_config(seed: int) -> ModelConfig:
    """Any small model. Those of even seeds hear in blocks, too."""
    rng = np.random.default_rng(seed)

    def pick(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    blocks = seed % 2 == 0
    n_mels = pick(80, 128)
    speech_heads, sound_heads, qformer_heads = (int(rng.integers(1, 4)) for _ in range(3))
    beats = BeatsConfig(
        dim=16 * sound_heads * pick(1, 2),
        layers=int(rng.integers(1, 4)),
        heads=sound_heads,
        ffn=pick(32, 72),
        patch_dim=pick(16, 40),
        conv_pos_groups=pick(4, 16),
    )
    return ModelConfig(
        name=f"random-{seed}",
        whisper=WhisperConfig(16 * speech_heads * pick(1, 2), int(rng.integers(1, 4)), speech_heads, 64, n_mels),
        audio_encoder=pick(beats, beats, None),
        qformer=QFormerConfig(
            dim=16 * qformer_heads * pick(1, 2),
            layers=int(rng.integers(1, 4)),
            heads=qformer_heads,
            ffn=pick(40, 96),
            window=random_window(rng, pick, blocks),
        ),
        llm=random_llm(rng, pick),
        lora=pick(None, LoraConfig(), LoraConfig(r=3, alpha=4.0, targets=EVERY_LINEAR[:4])),
        audio=AudioConfig(
            n_mels=n_mels,
            min_s=pick(0.4, 1.0),
            window="trimmed" if blocks else pick("padded", "trimmed"),
            log_mel_max=1.5 if blocks else None,
        ),
        prompt=PromptConfig(
            template=pick("USER: {}\nASSISTANT:", "{}"),
            tasks=TASKS,
            bos_token_id=pick(256, None),
            stop_token_ids=(257, *map(int, rng.choice(256, size=pick(0, 4, 12), replace=False))),
            end_symbol="</s>",
        ),
        streaming=BlockConfig(sizes=(16, 32), lookbacks=(16, 160)) if blocks else None,
    )


def random_window(rng: np.random.Generator, pick: Pick, blocks: bool) -> WindowConfig:
    """Blocks must hold whole windows, side by side; otherwise windows may overlap or leave gaps."""
    queries = pick(1, 2, 3)
    if blocks:
        frames = pick(8, 16)
        return WindowConfig(frames, frames, queries)
    frames = int(rng.integers(8, 41))
    return WindowConfig(frames, pick(frames, frames - 4, frames + int(rng.integers(1, 20))), queries)


def random_llm(rng: np.random.Generator, pick: Pick) -> dict[str, Any]:
    """Any small LLM of a known family. Its heads need not fill its width, nor fit into it."""
    kv_heads = int(rng.integers(1, 4))
    heads = kv_heads * pick(1, 2, 3)
    return {
        "vocab_size": 258 + int(rng.integers(0, 20)),
        "hidden_size": heads * pick(8, 12, 16),
        "intermediate_size": pick(40, 128),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": pick(16, 32),
        "max_position_embeddings": 2048,
        "rms_norm_eps": pick(1e-5, 1e-6),
        "rope_theta": pick(10000.0, 500000.0),
        "rope_scaling": pick(None, {"rope_type": "linear", "factor": 4.0}, LLAMA_3_ROPE),
        "tie_word_embeddings": pick(True, False),
        "bos_token_id": 256,
        "eos_token_id": 257,
        **pick(*FAMILIES),
    }
