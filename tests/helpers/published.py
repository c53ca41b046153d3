"""Tiny files with the key names, dtypes and quirks of published ones (SALMONN, Nota, NOTA-09), of random weights."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.starting.convert import Conversion, convert_salmonn

Edit = Callable[[dict[str, Any]], object]
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


@dataclass
class Published:
    """A published file and the parts it is converted with, in a folder of their own."""

    folder: Path
    audio_encoder: Path | None

    @property
    def file(self) -> Path:
        return self.folder / "salmonn.pth"

    @property
    def whisper(self) -> Path:
        openais = self.folder / "whisper.pt"
        return openais if openais.is_file() else self.folder / "whisper"

    @property
    def llm(self) -> Path:
        return self.folder / "llm"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def edit(self, change: Edit) -> None:
        """Change the loaded .pth."""
        loaded = torch.load(self.file, weights_only=True)
        change(loaded)
        torch.save(loaded, self.file)

    def edit_model(self, change: Edit) -> None:
        """Change its state dict."""
        self.edit(lambda loaded: change(loaded["model"]))

    def edit_json(self, name: str, change: Edit) -> None:
        path = self.folder / name
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    def convert(self, **options: Any) -> Conversion:
        return convert_salmonn(
            self.file,
            self.out,
            whisper=self.whisper,
            audio_encoder=self.audio_encoder,
            llm=self.llm,
            **options,
        )

    def refuses(self, message: str, **options: Any) -> None:
        """Converting fails with `message` and leaves nothing behind."""
        before = set(self.folder.iterdir())
        with pytest.raises(CheckpointError, match=message):
            self.convert(**options)
        assert set(self.folder.iterdir()) == before


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
