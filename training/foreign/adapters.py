"""Adapters of PEFT: a folder with adapter_config.json and adapter_model.safetensors, read under our names."""

import math
import re
from pathlib import Path
from typing import Any

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.model.config import LoraConfig
from salmonrun.training.tensors import LazyTensors, open_safetensors, read_json

# What W + scale * B @ A, the same for all layers, cannot express; each with the values that change nothing.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "use_dora": (False,),
    "use_qalora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": ([],),
    "target_parameters": ([],),
    "layer_replication": ([],),
    "trainable_token_indices": ([], {}),
    "alora_invocation_tokens": ([],),
    # PiSSA, OLoRA, CorDA and LoftQ change the weights beneath, too.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
WEIGHT = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def read_adapter(folder: Path) -> tuple[LoraConfig, LazyTensors]:
    """Rank, scale and matrices (`model.layers.0.self_attn.q_proj.A` [r, in], `.B` [out, r]) of an LLM's adapters.

    Raises:
        CheckpointError: a file is missing, or the adapters are more than low-rank matrices.
    """
    config, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    raw = read_json(config)
    check_adapter(raw, str(config))
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist; save the adapter with safe_serialization=True")
    tensors: LazyTensors = {}
    for name, get in open_safetensors(file).items():
        match = WEIGHT.fullmatch(name)
        if not match:
            raise CheckpointError(f"{file}: {name} is no adapter of a linear layer; merge the adapter with peft")
        tensors[f"{match[1]}.{match[2]}"] = get
    if not tensors:
        raise CheckpointError(f"{file} is empty; expected lora_A and lora_B weights")
    return _config(raw, tensors, str(config)), tensors


def check_adapter(raw: dict[str, Any], where: str) -> None:
    """Refuse an adapter_config.json with more than rank, scale and targets.

    Raises:
        CheckpointError: names the setting.
    """
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(f"{where} has peft_type {raw.get('peft_type')!r}; only LORA is read")
    for key, neutral in UNSUPPORTED.items():
        if raw.get(key) not in (None, *neutral):
            raise CheckpointError(f"{where}: {key} is {raw[key]!r}, which is not read; merge the adapter with peft")


def _config(raw: dict[str, Any], tensors: LazyTensors, where: str) -> LoraConfig:
    r, alpha = raw.get("r"), raw.get("lora_alpha")
    if not isinstance(r, int) or not isinstance(alpha, int | float) or r < 1:
        raise CheckpointError(f"{where}: r is {r!r} and lora_alpha {alpha!r}; expected a rank and a number")
    for name, get in tensors.items():
        matrix, other = get(), f"{name[:-1]}{'B' if name.endswith('A') else 'A'}"
        if other not in tensors or matrix.shape[0 if name.endswith("A") else 1] != r:
            raise CheckpointError(f"{where}: {name} has shape {list(matrix.shape)} at rank {r}, or {other} is missing")
    return LoraConfig(
        r=r,
        alpha=float(alpha * math.sqrt(r) if raw.get("use_rslora") else alpha),  # alpha / sqrt(r): Kalajdzievski 2023
        dropout=float(raw.get("lora_dropout", 0.0)),
        targets=tuple(sorted({name.split(".")[-2] for name in tensors})),
    )
