"""Named model configurations: small ones to try things with, and the published sizes."""

from dataclasses import replace
from typing import Any

from salmonrun.runtime.config import AudioConfig, BlockConfig, PromptConfig, WindowConfig
from salmonrun.runtime.errors import ConfigError
from salmonrun.training.model.config import LoraConfig, ModelConfig, QFormerConfig, WhisperConfig
from salmonrun.training.model.encoders.beats import BeatsConfig
from salmonrun.training.starting.new_tokenizer import FIRST_MERGE
from salmonrun.training.starting.preset_names import PresetName

# Our own words; a published checkpoint brings its own prompts.
TASKS: dict[str, tuple[str, ...]] = {
    "asr": ("<Speech><SpeechHere></Speech> Write down what is said.",),
    "caption": ("<Speech><SpeechHere></Speech> Say in one sentence what can be heard.",),
    "qa": ("<Speech><SpeechHere></Speech> Answer the question about the recording: {}",),
}

WHISPER_LARGE_V2 = WhisperConfig(d_model=1280, layers=32, heads=20, ffn=5120, n_mels=80)
WHISPER_LARGE_V3 = replace(WHISPER_LARGE_V2, n_mels=128)  # v3-turbo has the same encoder

VICUNA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VICUNA_13B = VICUNA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
LLAMA_3_2_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
LLAMA_3_2_3B = LLAMA_3_2_1B | {
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "head_dim": 128,
}


def preset(name: str) -> ModelConfig:
    """A named configuration.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def _small(name: str, width: int, layers: int, ffn: int, **changes: Any) -> ModelConfig:
    config = ModelConfig(
        name=name,
        whisper=WhisperConfig(d_model=width, layers=layers, heads=width // 32, ffn=ffn),
        audio_encoder=BeatsConfig(dim=width, layers=layers, heads=width // 32, ffn=ffn, patch_dim=width),
        qformer=QFormerConfig(dim=width, layers=2, heads=width // 32, ffn=ffn),
        llm={
            "model_type": "llama",
            "vocab_size": FIRST_MERGE,  # a tokenizer with merges has more
            "hidden_size": width,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "num_key_value_heads": max(1, width // 64),
            "head_dim": 32,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "initializer_range": round(width**-0.5, 4),  # 0.02 suits widths of thousands
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 256,
            "eos_token_id": 257,
        },
        prompt=PromptConfig(tasks=TASKS, bos_token_id=256, stop_token_ids=(257,), end_symbol="</s>"),
    )
    return replace(config, **changes)


def _published(
    name: str, whisper: WhisperConfig, llm: dict[str, Any], end_symbol: str, stops: tuple[int, ...]
) -> ModelConfig:
    return ModelConfig(
        name=name,
        whisper=whisper,
        audio_encoder=BeatsConfig(),
        qformer=QFormerConfig(),
        llm=llm,
        lora=LoraConfig(),
        audio=AudioConfig(n_mels=whisper.n_mels),
        prompt=PromptConfig(tasks=TASKS, bos_token_id=llm["bos_token_id"], stop_token_ids=stops, end_symbol=end_symbol),
    )


PRESETS: dict[PresetName, ModelConfig] = {
    "tiny": _small("tiny", width=64, layers=2, ffn=128),
    "demo": _small(
        "demo",
        width=192,
        layers=4,
        ffn=512,
        audio=AudioConfig(min_s=0.32, window="trimmed"),
        audio_encoder=BeatsConfig(dim=128, layers=2, heads=4, ffn=256, patch_dim=128, conv_pos_groups=16),
        qformer=QFormerConfig(
            dim=192, layers=2, heads=6, ffn=512, window=WindowConfig(frames=16, stride=16, num_queries=2)
        ),
    ),
    "salmonn-7b": _published("salmonn-7b", WHISPER_LARGE_V2, VICUNA_7B, "</s>", (2,)),
    "salmonn-13b": _published("salmonn-13b", WHISPER_LARGE_V2, VICUNA_13B, "</s>", (2,)),
    "nota-3b": _published("nota-3b", WHISPER_LARGE_V2, LLAMA_3_2_3B, "<|end_of_text|>", (128001, 128008, 128009)),
    "v3-turbo-llama-1b": _published(
        "v3-turbo-llama-1b", WHISPER_LARGE_V3, LLAMA_3_2_1B, "<|end_of_text|>", (128001, 128008, 128009)
    ),
}
# The same with encoders for blocks of 0.32 to 1.28 s.
PRESETS["v3-turbo-llama-1b-streaming"] = replace(
    PRESETS["v3-turbo-llama-1b"],
    name="v3-turbo-llama-1b-streaming",
    audio=AudioConfig(n_mels=WHISPER_LARGE_V3.n_mels, window="trimmed", log_mel_max=1.5),
    qformer=QFormerConfig(window=WindowConfig(frames=16, stride=16)),
    streaming=BlockConfig(sizes=(16, 32, 64), lookbacks=(160, 320)),
)
