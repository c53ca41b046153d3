"""Tiny files with the key names, dtypes and quirks of published ones (SALMONN, Nota, NOTA-09), of random weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.parts import write_tokenizer

QFORMER, FFN = 128, 256
BEATS = 48  # wide: tests/assets/golden/beats/beats.pt
BEATS_LAYERS = 3
PEFT = "base_model.model."
OPTIONS = {
    "freeze_whisper": True,
    "freeze_beats": True,
    "use_speech_Qformer": True,
    "window_level_Qformer": True,
    "num_speech_query_token": 1,
    "second_per_window": 0.333333,
    "second_stride": 0.333333,
    "lora": True,
    "lora_rank": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "prompt_template": "USER: {}\nASSISTANT:",
    "end_sym": "<|im_end|>",
}


def write_llm(
    folder: Path, layers: int = 3, kind: str = "llama", dtype: torch.dtype = torch.float16, **sizes: Any
) -> Path:
    """A transformers folder with the tokenizer of tests.parts; `kind` is a model_type."""
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


def write_whisper(folder: Path, layers: int = 2, n_mels: int = 80, dtype: torch.dtype = torch.float32) -> Path:
    """A transformers folder of the whole model, as on the hub."""
    ids = {"vocab_size": 51, "pad_token_id": 50, "bos_token_id": 50, "eos_token_id": 50, "decoder_start_token_id": 50}
    sizes = {"d_model": 48, "encoder_attention_heads": 3, "decoder_attention_heads": 3, "encoder_ffn_dim": 192}
    other = {"encoder_layers": layers, "decoder_layers": 1, "decoder_ffn_dim": 32, "num_mel_bins": n_mels}
    torch.manual_seed(2)
    config = transformers.WhisperConfig(**ids, **sizes, **other, init_std=0.1)
    transformers.WhisperForConditionalGeneration(config).to(dtype).save_pretrained(folder)
    return folder


def write_sentencepiece(folder: Path, texts: Sequence[str], add_dummy_prefix: bool = True) -> Path:
    """tokenizer.model as Llama 2's (BPE with bytes, a space in front) and tokenizer_config.json as Vicuna's."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(list(texts) * 10),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=add_dummy_prefix,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()

    def token(text: str) -> dict[str, Any]:
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        return {"__type": "AddedToken", "content": text, **flags}

    raw = {"add_bos_token": True, "add_eos_token": False, "bos_token": token("<s>"), "eos_token": token("</s>")}
    raw |= {"unk_token": token("<unk>"), "pad_token": None, "tokenizer_class": "LlamaTokenizer", "sp_model_kwargs": {}}
    raw |= {"clean_up_tokenization_spaces": False, "model_max_length": 4096}
    (folder / "tokenizer_config.json").write_text(json.dumps(raw))
    return folder / "tokenizer.model"


def shard(folder: Path) -> None:
    """The folder's weights in two files and an index, as large models have them."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    index: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "model.safetensors").unlink()


def as_bins(folder: Path) -> None:
    """The folder's shards as PyTorch files, as Vicuna is published."""
    index = folder / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    names = {file: f"pytorch_{file.removesuffix('.safetensors')}.bin" for file in set(raw["weight_map"].values())}
    for file, name in names.items():
        torch.save(load_file(folder / file), folder / name)
        (folder / file).unlink()
    raw["weight_map"] = {tensor: names[file] for tensor, file in raw["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(raw))
    index.unlink()


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def random(*shape: int, scale: float = 0.1, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape) * scale).to(dtype)


def layer_norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + random(width), f"{name}.bias": random(width)}


def linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    return {f"{name}.weight": random(outputs, inputs), f"{name}.bias": random(outputs)}


def qformer_state(speech: int, audio: int, llm: int) -> dict[str, Tensor]:
    """What stands between encoders and LLM, with BERT's unused buffer; `audio` 0: trained without BEATs."""
    state = {"speech_query_tokens": random(1, 1, QFORMER), **layer_norm("ln_speech", speech)}
    state |= layer_norm("ln_audio", audio) if audio else {}
    state |= linear("speech_llama_proj", QFORMER, llm)
    bert = "speech_Qformer.bert."
    state[f"{bert}embeddings.position_ids"] = torch.arange(512)[None]
    state |= layer_norm(f"{bert}embeddings.LayerNorm", QFORMER)
    for i in range(2):
        layer = f"{bert}encoder.layer.{i}."
        for attention, inputs in (("attention", QFORMER), ("crossattention", speech + audio)):
            state |= linear(f"{layer}{attention}.self.query", QFORMER, QFORMER)
            state |= linear(f"{layer}{attention}.self.key", inputs, QFORMER)
            state |= linear(f"{layer}{attention}.self.value", inputs, QFORMER)
            state |= linear(f"{layer}{attention}.output.dense", QFORMER, QFORMER)
            state |= layer_norm(f"{layer}{attention}.output.LayerNorm", QFORMER)
        state |= linear(f"{layer}intermediate_query.dense", QFORMER, FFN)
        state |= linear(f"{layer}output_query.dense", FFN, QFORMER)
        state |= layer_norm(f"{layer}output_query.LayerNorm", QFORMER)
    return state


def lora_state(prefix: str, weights: dict[str, Tensor], r: int = 8) -> dict[str, Tensor]:
    """PEFT's keys for adapters on `weights` (name without `.weight` -> matrix), as its state_dict has them."""
    state = {}
    for name, weight in weights.items():
        state[f"{prefix}{name}.lora_A.default.weight"] = random(r, weight.shape[1])
        state[f"{prefix}{name}.lora_B.default.weight"] = random(weight.shape[0], r)
    return state


def llm_targets(
    folder: Path, layers: Sequence[int], targets: Sequence[str] = ("q_proj", "v_proj")
) -> dict[str, Tensor]:
    """The matrices of these layers of an LLM that get adapters, numbered anew from 0."""
    llm = transformers.AutoModelForCausalLM.from_pretrained(folder)
    named = dict(llm.named_parameters())
    found = {}
    for new, old in enumerate(layers):
        for name, weight in named.items():
            start = f"model.layers.{old}."
            if name.startswith(start) and name.endswith(".weight") and name.split(".")[-2] in targets:
                found[f"model.layers.{new}.{name.removeprefix(start).removesuffix('.weight')}"] = weight
    return found


def whisper_targets(layers: int, width: int = 48) -> dict[str, Tensor]:
    """q_proj and v_proj of Whisper's encoder; `o_proj`, which NOTA-09 lists too, matches nothing there."""
    square = torch.zeros(width, width)
    return {f"layers.{i}.self_attn.{name}": square for i in range(layers) for name in ("q_proj", "v_proj")}


def duplicate_tables() -> dict[str, Tensor]:
    """BEATs' shared table, which a state_dict lists for every layer and only layer 0's name is frozen."""
    table = random(320, 4)
    return {f"beats.encoder.layers.{i}.self_attn.relative_attention_bias.weight": table for i in range(1, BEATS_LAYERS)}


def padded_head(folder: Path) -> dict[str, Tensor]:
    """The output layer of a tied LLM as its file has it: with the `[PAD]` row that training added."""
    embedding = transformers.AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight.detach()
    tokens = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    head = torch.cat([embedding[: len(tokens)], random(1, embedding.shape[1])]).half()
    return {f"llama_model.{PEFT}lm_head.weight": head}


def write_salmonn(path: Path, state: dict[str, Tensor], options: dict[str, Any] | None = None, **entries: Any) -> Path:
    """`torch.save` as SALMONN's runner does it: with the optimizer's state, the scaler, the epoch and the config."""
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": random(4), "exp_avg_sq": random(4)}},
        "param_groups": [{"lr": 3e-5, "betas": (0.9, 0.999), "params": [0]}],
    }
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
    config = {"model": OPTIONS | (options or {}), "run": {"seed": 42}, "datasets": {}}
    torch.save(
        {"model": state, "optimizer": optimizer, "config": config, "scaler": scaler, "epoch": 3, **entries}, path
    )
    return path


def write_peft(folder: Path, weights: dict[str, Tensor], r: int = 4, **settings: Any) -> Path:
    """adapter_config.json and adapter_model.safetensors as peft writes them."""
    folder.mkdir()
    raw = {"peft_type": "LORA", "r": r, "lora_alpha": 8, "lora_dropout": 0.05, "bias": "none", "use_dora": False}
    raw |= {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "rank_pattern": {}, "alpha_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(raw | settings))
    named = {name.replace(".default", ""): value for name, value in lora_state(PEFT, weights, r).items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder
