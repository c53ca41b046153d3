"""The language model: built by transformers, its tensors named as in the LLM's own files."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import is_flash_attn_2_available

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.model.config import LoraConfig
from salmonrun.training.model.experts import EXPERTS, published
from salmonrun.training.model.lora import add_lora, base_parameters
from salmonrun.training.tensors import LazyTensors, load_strict

# Up to here PyTorch's flash attention for the CPU takes longer in bfloat16, forth and back, than its plain products:
# 3 times at 57 positions, 1.1 times at 200 (docs/performance.md, "Training").
PLAIN_POSITIONS = 160
LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def build_llm(config: dict[str, Any], lora: LoraConfig | None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """An LLM of random weights, with adapters if there is a `lora`.

    Raises:
        CheckpointError: the config is none that transformers can build, or the adapters do not fit it.
    """
    try:
        llm: nn.Module = transformers.AutoModelForCausalLM.from_config(
            llm_config(config), dtype=dtype, attn_implementation=attention_kernel(dtype)
        )
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(f"transformers cannot build the LLM of this config: {error}") from error
    llm.generation_config = transformers.GenerationConfig()  # a folder's own would change search behind our back
    if lora:
        add_lora(llm, lora, "lora")
    return llm.eval()


def llm_config(config: dict[str, Any]) -> transformers.PreTrainedConfig:
    """transformers' own reading of an LLM's config.json: every default filled in, every spelling made the same.

    Raises:
        CheckpointError: transformers does not take it.
    """
    options = copy.deepcopy(config)  # transformers writes into nested dicts
    for key in ("model_type", "torch_dtype", "dtype"):
        options.pop(key, None)
    try:
        return transformers.AutoConfig.for_model(config["model_type"], **options)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(f"transformers cannot build the LLM of this config: {error}") from error


def attention_kernel(dtype: torch.dtype) -> str:
    """flash-attn where it is installed and runs: in half precision on a CUDA GPU. Else PyTorch's own."""
    half = dtype in (torch.float16, torch.bfloat16)
    return "flash_attention_2" if half and torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"


def training_attention(positions: int, device: torch.device) -> AbstractContextManager[None]:
    """The faster of PyTorch's attentions for a pass over so many positions: with gradients, it may be the plain one."""
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if device.type == "cpu" and half and torch.is_grad_enabled() and positions <= PLAIN_POSITIONS:
        return cast(AbstractContextManager[None], sdpa_kernel(SDPBackend.MATH))
    return nullcontext()


def published_parameters(llm: nn.Module) -> dict[str, Tensor]:
    """The LLM's own parameters under the names of its files, adapters left out; of fused experts, views of each."""
    parameters = base_parameters(llm)
    names = EXPERTS.get(cast(transformers.PreTrainedModel, llm).config.model_type)
    if names is None:
        return dict(parameters)
    return dict(pair for name, value in parameters.items() for pair in published(name, value, names))


def base_tensors(tensors: LazyTensors, tied: bool) -> LazyTensors:
    """The tensors of an LLM's files that are its parameters.

    Raises:
        CheckpointError: a tied output layer is stored and is not the embeddings.
    """
    if tied and LM_HEAD in tensors:
        if not torch.equal(tensors[LM_HEAD](), tensors[EMBEDDING]()):
            raise CheckpointError(f"llm: {LM_HEAD} is stored, tied in the config, and differs from {EMBEDDING}")
        tensors = {name: get for name, get in tensors.items() if name != LM_HEAD}
    # Rotary frequencies, which old transformers stored, follow from the config.
    return {name: get for name, get in tensors.items() if not name.endswith("rotary_emb.inv_freq")}


def load_base(llm: nn.Module, tensors: LazyTensors, tied: bool) -> None:
    """Fill the LLM strictly; a tied output layer may be stored or not, and must then equal the embeddings."""
    load_strict(published_parameters(llm), base_tensors(tensors, tied), "llm")
