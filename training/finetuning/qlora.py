"""QLoRA (Dettmers et al. 2023): the frozen LLM's matrices in nf4 with double quantization, its adapters in float32."""

from typing import Any

import torch
from torch import nn

from salmonrun.runtime.errors import ConfigError, MissingExtraError

BLOCK = 64  # values that share a scale, as published


def hold_in_4_bits(llm: nn.Module, compute_dtype: torch.dtype, device: torch.device) -> None:
    """Replace every linear layer but the output layer and the adapters by bitsandbytes' frozen 4-bit one, in place.

    What is saved and exported is the base as it was, with the adapters beside it or merged in full precision: merged
    into 4 bits they would be rounded away. A base that was read from 4 bits gets the same codes again, its scales
    within a few thousandths.

    Args:
        llm: the LLM with its weights; adapters may be attached.
        compute_dtype: what products are computed in.
        device: where to quantize, and where the 4-bit weights stay. A GPU is much faster at it.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
        ConfigError: a layer's rows are not whole blocks.
    """
    bnb = _bitsandbytes()
    for name, layer in list(llm.named_modules()):
        if not isinstance(layer, nn.Linear) or name.endswith("lm_head") or ".lora_" in name:
            continue
        if layer.in_features % BLOCK:
            # bitsandbytes' CPU kernel begins a block with every row, its quantizer does not: values would be mixed up.
            raise ConfigError(
                f"llm: {name} has {layer.in_features} inputs; 4 bits need a multiple of {BLOCK}: leave out quantize_llm"
            )
        llm.set_submodule(name, _linear_4bit(bnb, layer, compute_dtype, device))


def _linear_4bit(bnb: Any, layer: nn.Linear, compute_dtype: torch.dtype, device: torch.device) -> Any:
    quantized = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=compute_dtype,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    quantized.weight = bnb.nn.Params4bit(
        layer.weight.data,
        blocksize=BLOCK,
        compress_statistics=True,
        quant_type="nf4",
        module=quantized,
    ).to(device)
    quantized.bias = layer.bias
    # Without gradients, some CPUs would repack the weights into a form that gives none afterwards: an evaluation
    # between two training steps would silently end the training of what lies below.
    quantized.support_avx512bf16_for_cpu = False
    return quantized.train(layer.training)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingExtraError("quantize_llm needs bitsandbytes: pip install 'salmonrun[qlora]'") from error
    return bitsandbytes
