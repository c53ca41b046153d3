"""Tiny pretrained parts of random weights in their published layouts, written by their own libraries."""

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors.torch import load_file

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio|>"]
HEARD = "<Speech><SpeechHere></Speech> Write down what is said."
# ChatML with a system turn of its own, as in SmolLM2-Instruct and Qwen2-Instruct.
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tokenizer(folder: Path, chat_template: str | None = CHATML, **special: object) -> None:
    """A byte-level BPE with ChatML's symbols. As in SmolLM2-Instruct, bos_token is what opens every turn."""
    fast = tokenizers.Tokenizer(tokenizers.models.BPE())
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator([CHATML, HEARD, "user system assistant You help."] * 3, trainer)
    fast.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": chat_template, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_llm(
    folder: Path, layers: int = 3, kind: str = "llama", dtype: torch.dtype = torch.float16, **sizes: Any
) -> Path:
    """A transformers folder; `kind` is a model_type."""
    settings = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "vocab_size": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **sizes,
    }
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, **settings)
    transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_whisper(
    folder: Path, layers: int = 2, n_mels: int = 80, dtype: torch.dtype = torch.float32, whole: bool = True
) -> Path:
    """A transformers folder of the whole model, as on the hub, or of one without its output layer."""
    ids = {"vocab_size": 51, "pad_token_id": 50, "bos_token_id": 50, "eos_token_id": 50, "decoder_start_token_id": 50}
    sizes = {"d_model": 48, "encoder_attention_heads": 3, "decoder_attention_heads": 3, "encoder_ffn_dim": 192}
    other = {"encoder_layers": layers, "decoder_layers": 1, "decoder_ffn_dim": 32, "num_mel_bins": n_mels}
    torch.manual_seed(2)
    config = transformers.WhisperConfig(**ids, **sizes, **other, init_std=0.1)
    kind = transformers.WhisperForConditionalGeneration if whole else transformers.WhisperModel
    kind(config).to(dtype).save_pretrained(folder)
    return folder


def write_openai_whisper(folder: Path, path: Path) -> Path:
    """The encoder of a transformers folder as openai/whisper stores it, with a decoder's tensor beside it."""
    names = (
        ("model.", ""),
        ("embed_positions.weight", "positional_embedding"),
        ("self_attn_layer_norm", "attn_ln"),
        ("final_layer_norm", "mlp_ln"),
        ("self_attn.q_proj", "attn.query"),
        ("self_attn.k_proj", "attn.key"),
        ("self_attn.v_proj", "attn.value"),
        ("self_attn.out_proj", "attn.out"),
        ("fc1", "mlp.0"),
        ("fc2", "mlp.2"),
        ("encoder.layer_norm", "encoder.ln_post"),
        ("layers.", "blocks."),
    )
    state = {"decoder.ln.weight": torch.ones(48)}
    for name, value in load_file(folder / "model.safetensors").items():
        if name.startswith("model.encoder."):
            for theirs, openais in names:
                name = name.replace(theirs, openais)
            state[name] = value
    dims = {"n_audio_state": 48, "n_audio_layer": 2, "n_audio_head": 3, "n_mels": 80, "n_audio_ctx": 1500}
    torch.save({"dims": dims, "model_state_dict": state}, path)
    return path


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
