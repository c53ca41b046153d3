"""Whether the tensors of a pretrained part are those of its config, by name and shape, before anything relies on it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from salmonrun.training.model.config import WhisperConfig
from salmonrun.training.model.encoders import AudioEncoderConfig
from salmonrun.training.model.llm import LM_HEAD, base_tensors, build_llm, load_base, published_parameters
from salmonrun.training.model.whisper import WhisperEncoder
from salmonrun.training.tensors import LazyTensors, lazy, load_strict


def check_encoder(config: WhisperConfig | AudioEncoderConfig, tensors: LazyTensors, what: str) -> None:
    """Whisper's encoder or an audio encoder: one tensor for each parameter, none left over.

    It is laid out without memory, and takes no more than one of the tensors.

    Args:
        config: of the part.
        tensors: of its file, under our names; those without values will do.
        what: names the part in errors.

    Raises:
        CheckpointError: names what is missing, not known, misshapen or no floating-point numbers.
    """
    with torch.device("meta"):
        module: nn.Module = WhisperEncoder(config) if isinstance(config, WhisperConfig) else config.build()
    load_strict(_parameters(module), tensors, what)


def check_llm(config: Mapping[str, Any], tensors: LazyTensors) -> None:
    """The LLM, all its values read once; a tied output layer that is stored must be the embeddings.

    Raises:
        CheckpointError: as of `check_encoder`, or transformers cannot build it.
    """
    with torch.device("meta"):
        llm = build_llm(dict(config), None)
    load_base(llm, tensors, tied=bool(config.get("tie_word_embeddings", False)))


def check_llm_table(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The LLM by the headers of its files alone.

    Raises:
        CheckpointError: as of `check_llm`, but for what only values tell.
    """
    tied = bool(config.get("tie_word_embeddings", False))
    with torch.device("meta"):
        targets = published_parameters(build_llm(dict(config), None))
        given = base_tensors(lazy({name: torch.empty(shape) for name, shape in shapes.items()}), tied=False)
    load_strict(targets, {name: get for name, get in given.items() if not (tied and name == LM_HEAD)}, "the LLM")


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    """Of Whisper the parameters alone, since its positions are one; of others all that is stored."""
    if isinstance(module, WhisperEncoder):
        return dict(module.named_parameters())
    return module.state_dict()
