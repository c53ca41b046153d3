"""The language model: built by transformers, adapted by peft, its tensors named as in the LLM's own files."""

import copy
import warnings
from typing import Any

import peft
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from runtime.errors import CheckpointError
from training.config import LoraConfig
from training.tensors import LazyTensors, load_strict

LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def build_llm(config: dict[str, Any], lora: LoraConfig | None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """An LLM of random weights, with adapters if `lora` says so.

    Raises:
        CheckpointError: the config is none that transformers can build, or the adapters do not fit it.
    """
    options = copy.deepcopy(config)  # transformers writes into nested dicts
    for key in ("model_type", "torch_dtype", "dtype"):
        options.pop(key, None)
    try:
        hf_config = transformers.AutoConfig.for_model(config["model_type"], **options)
        llm: nn.Module = transformers.AutoModelForCausalLM.from_config(
            hf_config, dtype=dtype, attn_implementation="sdpa"
        )
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(f"transformers cannot build the LLM of this config: {error}") from error
    llm.generation_config = transformers.GenerationConfig()  # a folder's own would change search behind our back
    return (add_lora(llm, lora) if lora else llm).eval()


def load_base(llm: nn.Module, tensors: LazyTensors, tied: bool) -> None:
    """Fill the LLM strictly; a tied output layer may be stored or not, and must then equal the embeddings."""
    if tied and LM_HEAD in tensors:
        if not torch.equal(tensors[LM_HEAD](), tensors[EMBEDDING]()):
            raise CheckpointError(f"llm: {LM_HEAD} is stored, tied in the config, and differs from {EMBEDDING}")
        tensors = {name: get for name, get in tensors.items() if name != LM_HEAD}
    # Rotary frequencies, which old transformers stored, follow from the config.
    tensors = {name: get for name, get in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    load_strict(base_parameters(llm), tensors, "llm")


def add_lora(llm: nn.Module, config: LoraConfig) -> nn.Module:
    """Wrap the LLM's target modules with peft's adapters."""
    adapters = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft reads a transformers attribute that is being renamed; nothing a user of ours can do about it.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        try:
            return peft.get_peft_model(llm, adapters)
        except ValueError as error:
            raise CheckpointError(f"lora.targets {config.targets} do not fit this LLM: {error}") from error


def lora_parameters(llm: nn.Module) -> dict[str, Tensor]:
    """Adapter parameters under our names: `model.layers.0.self_attn.q_proj.A` [r, in] and `.B` [out, r]."""
    found: dict[str, Tensor] = {}
    for name, parameter in llm.named_parameters():
        for matrix in ("A", "B"):
            suffix = f".lora_{matrix}.default.weight"
            if name.endswith(suffix):
                found[f"{name.removeprefix('base_model.model.').removesuffix(suffix)}.{matrix}"] = parameter
    return found


def base_parameters(llm: nn.Module) -> dict[str, Tensor]:
    """The LLM's own parameters under the names of its files, adapters left out."""
    named = {}
    for name, parameter in llm.named_parameters():
        if ".lora_" not in name:
            named[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = parameter.detach()
    return named


def load_lora(llm: nn.Module, tensors: LazyTensors) -> None:
    """Fill the adapters strictly from tensors under our names."""
    load_strict(lora_parameters(llm), tensors, "lora (see lora.r and lora.targets in the config)")


def merged_weights(tensors: LazyTensors, lora: LazyTensors, config: LoraConfig | None) -> LazyTensors:
    """The LLM's tensors with the adapters added in float32: W + alpha / r * B @ A. Read one by one."""
    merged = dict(tensors)
    if config is None:
        return merged
    for name in {name.rsplit(".", 1)[0] for name in lora}:
        merged[f"{name}.weight"] = _merge(tensors[f"{name}.weight"], lora[f"{name}.A"], lora[f"{name}.B"], config.scale)
    return merged


def _merge(weight: Any, a: Any, b: Any, scale: float) -> Any:
    return lambda: weight().float() + scale * (b().float() @ a().float())
