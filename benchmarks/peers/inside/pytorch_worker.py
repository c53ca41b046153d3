"""PyTorch and transformers: eager or compiled, and 4-bit weights of bitsandbytes."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from any_length import AnyLengthEncoder
from protocol import F32, Json, serve
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, StaticCache


def load(request: Json) -> "Llm | Whisper":
    """By what the folder holds."""
    torch.set_num_threads(request["threads"])
    torch.set_grad_enabled(False)
    kind = json.loads((Path(request["model"]) / "config.json").read_text())["model_type"]
    return Whisper(request) if kind == "whisper" else Llm(request)


class Llm:
    """The model's forward with transformers' caches: growing ones, or of fixed size when its steps are compiled."""

    def __init__(self, request: Json) -> None:
        self.compiled, dtype = request["options"].get("compiled", False), getattr(torch, request["options"]["dtype"])
        nf4 = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        quantization = {"quantization_config": nf4, "device_map": "cpu"} if request["options"].get("nf4") else {}
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            request["model"], dtype=dtype, attn_implementation="sdpa", **quantization
        ).eval()
        self.weight_bytes = sum(parameter.nbytes for parameter in self.model.parameters())
        self.step_forward = torch.compile(self.model.forward, dynamic=False) if self.compiled else self.model.forward
        self.caches: dict[int, StaticCache] = {}

    def reset(self, prompt: int, steps: int) -> None:
        """An empty cache."""
        self.length, self.cache = 0, None
        if self.compiled:  # one for each size: a new object would be compiled anew
            size = prompt + steps
            self.cache = self.caches.setdefault(size, StaticCache(self.model.config, max_cache_len=size))
            self.cache.reset()

    def prefill(self, token_ids: list[int]) -> None:
        """The prompt."""
        self.prompt_logits = self._run(token_ids)

    def step(self) -> None:
        """One token."""
        self._run([self.token])

    def logits(self, token_ids: list[int]) -> F32:  # noqa: ARG002
        """Of the prompt's end."""
        return self.prompt_logits

    def _run(self, token_ids: list[int]) -> F32:
        end = self.length + len(token_ids)
        forward = self.step_forward if len(token_ids) == 1 else self.model.forward
        output = forward(
            input_ids=torch.tensor([token_ids]),
            position_ids=torch.arange(self.length, end)[None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.length, self.cache = end, output.past_key_values
        logits: F32 = output.logits[0, -1].float().numpy()
        self.token = int(np.argmax(logits))
        return logits


class Whisper:
    """The encoder."""

    def __init__(self, request: Json) -> None:
        self.dtype = getattr(torch, request["options"]["dtype"])
        module = AnyLengthEncoder(request["model"], self.dtype)
        self.weight_bytes = sum(parameter.nbytes for parameter in module.parameters())
        self.forward = torch.compile(module, dynamic=False) if request["options"].get("compiled") else module

    def encode(self, log_mel: F32) -> F32:
        """Any length up to 30 s."""
        states: F32 = self.forward(torch.from_numpy(log_mel)[None].to(self.dtype))[0].float().numpy()
        return states


if __name__ == "__main__":
    serve(load, {name: version(name) for name in ("torch", "transformers", "bitsandbytes")})
