"""Random weights in a shape, as a transformers folder: what every engine's own format is made from."""

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.peers.shapes import Shape
from salmonrun.training.model.whisper import sinusoids
from salmonrun.training.starting.new_tokenizer import write_tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 131072, **SPECIAL}


def make_model(folder: Path, shape: Shape) -> Path:
    """Write the folder unless it is there."""
    if folder.exists():
        return folder
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, shape.config["torch_dtype"])
    tensors = {name: random_tensor(name, dims, generator).to(dtype).contiguous() for name, dims in shape.tensors()}
    save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(scratch / "tokenizer.json")
    for name, content in {
        "config.json": shape.config,
        "generation_config.json": {key: shape.config[key] for key in ("bos_token_id", "eos_token_id")},
        "tokenizer_config.json": TOKENIZER,
        "special_tokens_map.json": SPECIAL,
    }.items():
        (scratch / name).write_text(json.dumps(content, indent=2) + "\n")
    scratch.rename(folder)
    return folder


def random_tensor(name: str, dims: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values of the spread that trained weights have: activations neither fade nor grow, logits spread by about 2."""
    if name.endswith("encoder.embed_positions.weight"):
        return sinusoids(*dims)
    if name.endswith("norm.weight"):
        return torch.ones(dims)
    values = torch.randn(dims, generator=generator)
    if len(dims) == 1:
        return 0.02 * values
    spread = 2.0 if name.endswith("embed_tokens.weight") else 1.0
    return values * spread / math.sqrt(values[0].numel())
