"""Tiny EAT encoders of random weights in their published layouts: fairseq's .pt, pre-trained and fine-tuned, and the
Hugging Face folder. fairseq and OmegaConf need not be installed: their classes are made up while a file is written, and
pickle under the names and with the states that OmegaConf 2.0.6, 2.1.1 and 2.4.0 have.
"""

import argparse
import json
import sys
import typing
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

DIM, LAYERS, HEADS, FFN, PATCHES = 48, 2, 3, 64, 200
MODALITY = "modality_encoders.IMAGE."
MODEL = {
    "_name": "data2vec_multi",
    "depth": LAYERS,
    "num_heads": HEADS,
    "embed_dim": DIM,
    "norm_eps": 1e-6,
    "norm_affine": True,
    "layer_norm_first": False,
    "average_top_k_layers": 12,
    "loss_scale": None,
    "modalities": {
        "image": {"in_chans": 1, "prenet_depth": 0, "num_extra_tokens": 1, "use_alibi_encoder": False, "embed_dim": DIM}
    },
}
CONFIG = {
    "architectures": ["EATModel"],
    "model_type": "eat",
    "auto_map": {"AutoModel": "modeling_eat.EATModel"},
    "embed_dim": DIM,
    "depth": LAYERS,
    "num_heads": HEADS,
    "mlp_ratio": FFN / DIM,
    "patch_size": 16,
    "stride": 16,
    "in_chans": 1,
    "mel_bins": 128,
    "max_length": PATCHES,
    "img_size": [1024, 128],
    "norm_eps": 1e-6,
    "norm_affine": True,
    "qkv_bias": True,
    "layer_norm_first": False,
    "fixed_positions": True,
    "model_variant": "pretrain",
}


def published_positions(patches: int, dim: int) -> Tensor:
    """[1, 8 * patches, dim] as the published code makes it (models/mae.py): a grid whose width is 8 bands."""

    def one(width: int, positions: Any) -> Any:
        omega = 1.0 / 10000 ** (np.arange(width // 2, dtype=np.float64) / (width / 2.0))
        angles = np.outer(positions.reshape(-1), omega)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    across, down = np.meshgrid(np.arange(8), np.arange(patches))
    return torch.from_numpy(np.concatenate([one(dim // 2, across), one(dim // 2, down)], axis=1)).float()[None]


def published_state(seed: int = 0, dim: int = DIM, layers: int = LAYERS, ffn: int = FFN) -> dict[str, Tensor]:
    """What a pre-trained .pt holds of the encoder and of the decoder."""
    torch.manual_seed(seed)
    state = {
        f"{MODALITY}extra_tokens": torch.randn(1, 1, dim),
        f"{MODALITY}local_encoder.proj.weight": torch.randn(dim, 1, 16, 16) / 16,
        f"{MODALITY}local_encoder.proj.bias": 0.1 * torch.randn(dim),
        f"{MODALITY}fixed_positional_encoder.positions": published_positions(PATCHES, dim),
        **norm(f"{MODALITY}context_encoder.norm", dim),
        f"{MODALITY}decoder.blocks.0.0.weight": torch.randn(dim, 3, 3, 3),
        f"{MODALITY}decoder.blocks.0.0.bias": torch.randn(dim),
        f"{MODALITY}decoder.proj.weight": torch.randn(dim, dim),
        f"{MODALITY}decoder.proj.bias": torch.randn(dim),
    }
    for i in range(layers):
        state |= norm(f"blocks.{i}.norm1", dim) | linear(f"blocks.{i}.attn.qkv", dim, 3 * dim, 2.0)
        state |= linear(f"blocks.{i}.attn.proj", dim, dim) | norm(f"blocks.{i}.norm2", dim)
        state |= linear(f"blocks.{i}.mlp.fc1", dim, ffn) | linear(f"blocks.{i}.mlp.fc2", ffn, dim)
    return state


def norm(name: str, dim: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + 0.2 * torch.randn(dim), f"{name}.bias": 0.2 * torch.randn(dim)}


def linear(name: str, dim: int, out: int, gain: float = 1.0) -> dict[str, Tensor]:
    return {f"{name}.weight": gain * torch.randn(out, dim) / dim**0.5, f"{name}.bias": 0.1 * torch.randn(out)}


def encoder_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if ".decoder." not in name}


def write_pretrained(path: Path, state: dict[str, Tensor], model: dict[str, Any] = MODEL, as_is: bool = False) -> Path:
    """fairseq's file of a pre-training: settings as OmegaConf (or `as_is`), the teacher, the trainer's state."""
    teacher = {"_ema": {name: value.clone() for name, value in encoder_names(state).items()}}
    return write_fairseq(path, state | teacher, {"common": {"seed": 1}, "model": model, "task": {"data": "???"}}, as_is)


def write_fine_tuned(path: Path, state: dict[str, Tensor]) -> Path:
    """fairseq's file of a fine-tuning: all names behind "model.", a classifier, settings within settings."""
    named = {f"model.{name}": value for name, value in encoder_names(state).items()}
    named |= norm("fc_norm", DIM) | linear("head", DIM, 527)
    model = {"_name": "mae_image_classification", "pretrained_model_args": {"model": MODEL}, "norm_eps": None}
    return write_fairseq(path, named, {"common": {"seed": 1}, "model": model})


def write_folder(folder: Path, state: dict[str, Tensor], classifier: bool = False, **changes: Any) -> Path:
    """The Hugging Face folder: remote code, so that config.json has all settings."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {f"{MODALITY}context_encoder.norm": "pre_norm", MODALITY: ""}
    tensors = {}
    for name, value in encoder_names(state).items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        tensors[f"model.{name}"] = value
    if classifier:
        tensors |= norm("model.fc_norm", DIM) | linear("model.head", DIM, 527)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


def write_fairseq(path: Path, state: dict[str, Any], cfg: dict[str, Any], as_is: bool = False) -> Path:
    """What fairseq's trainer saves (fairseq/trainer.py, state_dict)."""
    with omegaconf() as container:
        content = {
            "args": None,
            "cfg": cfg if as_is else container(cfg),
            "model": state,
            "criterion": {},
            "optimizer_history": [{"criterion_name": "ModelCriterion", "optimizer_name": "FP16Optimizer"}],
            "task_state": {},
            "extra_state": {"best": np.float64(0.4), "metrics": [], "previous": argparse.Namespace(epoch=30)},
            "last_optimizer_state": None,
        }
        torch.save(content, path)
    return path


@contextmanager
def omegaconf() -> Iterator[Any]:
    """A function that makes containers which pickle as OmegaConf's do; its modules exist within the context alone."""
    made: dict[str, Any] = {}
    modules: dict[str, ModuleType] = {}
    for module, names in (
        ("base", ("ContainerMetadata", "Metadata")),
        ("dictconfig", ("DictConfig",)),
        ("listconfig", ("ListConfig",)),
        ("nodes", ("AnyNode",)),
    ):
        modules[f"omegaconf.{module}"] = ModuleType(f"omegaconf.{module}")
        for name in names:
            made[name] = type(name, (), {"__module__": f"omegaconf.{module}"})
            setattr(modules[f"omegaconf.{module}"], name, made[name])

    def build(name: str, **state: Any) -> Any:
        built = made[name]()
        built.__dict__.update(state)
        return built

    def wrap(value: Any, parent: Any = None, key: Any = None) -> Any:
        described = {"ref_type": typing.Any, "object_type": None, "optional": True, "key": key, "flags": {}}
        if not isinstance(value, dict | list):
            return build("AnyNode", _metadata=build("Metadata", **described), _parent=parent, _val=value)
        cache = defaultdict(dict, {"env": {"PWD": "/home"}})
        described |= {"object_type": type(value), "resolver_cache": cache, "key_type": typing.Any, "element_type": int}
        kind = "DictConfig" if isinstance(value, dict) else "ListConfig"
        made = build(kind, _metadata=build("ContainerMetadata", **described), _parent=parent)
        items = value.items() if isinstance(value, dict) else enumerate(value)
        wrapped = {name: wrap(item, made, name) for name, item in items}
        made._content = wrapped if isinstance(value, dict) else list(wrapped.values())
        return made

    with patch.dict(sys.modules, {"omegaconf": ModuleType("omegaconf"), **modules}):
        yield wrap
