"""A fresh model with random weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.checkpoint import save
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.model.llm import build_llm
from salmonrun.training.model.qformer import QFormer
from salmonrun.training.model.salmonn import SalmonnModel
from salmonrun.training.model.whisper import build_whisper
from salmonrun.training.starting.new_tokenizer import FIRST_MERGE, write_tokenizer


def init_checkpoint(
    config: ModelConfig,
    folder: str | Path,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    fresh: bool = False,
    texts: Sequence[str] = (),
    vocab_size: int = FIRST_MERGE,
) -> None:
    """Write a checkpoint of random weights with a byte-level tokenizer. It knows nothing yet.

    Args:
        config: the model's dimensions.
        folder: to be created.
        seed: of the weights.
        dtype: to store the weights in; None for float32.
        fresh: standard initial values, to be trained; else values with which every part shows in the output.
        texts: what the tokenizer's merges are learnt from, and, as often, the model's own prompts.
        vocab_size: of the tokenizer, at most: 258 are the bytes and <s> and </s>, the rest merges.
    """
    with TemporaryDirectory() as scratch:
        tokenizer_file = Path(scratch) / "tokenizer.json"
        prompts = [config.prompt.template.replace("{}", text) for task in config.prompt.tasks.values() for text in task]
        size = write_tokenizer(tokenizer_file, [*texts, *prompts * (1 + len(texts))], vocab_size)
        if texts:
            config = replace(config, llm=config.llm | {"vocab_size": size})
        make = fresh_model if fresh else random_model
        save(make(config, Tokenizer(tokenizer_file), seed), folder, tokenizer_file, dtype)


def fresh_model(config: ModelConfig, tokenizer: Tokenizer, seed: int = 0) -> SalmonnModel:
    """A model of the usual initial values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SalmonnModel(
            config,
            tokenizer,
            build_whisper(config.whisper, config.whisper_lora),
            config.audio_encoder.build() if config.audio_encoder else None,
            QFormer(config),
            build_llm(config.llm, config.lora),
        )


def random_model(config: ModelConfig, tokenizer: Tokenizer, seed: int = 0) -> SalmonnModel:
    """A model of random weights whose every part matters: adapters and biases are not zero, layers do not fade."""
    model = fresh_model(config, tokenizer, seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith("embed_tokens.weight"):
                parameter.normal_(std=2 / parameter.shape[1] ** 0.5)  # logits of a spread of about 2
            elif ".lora_" in name:
                parameter.normal_(std=0.02)
            elif (parameter.ndim == 2 or ".experts." in name) and "embed" not in name:
                parameter.normal_(std=_gain(name) * parameter.shape[-1] ** -0.5)
            elif parameter.ndim == 1 and name.endswith("bias"):
                parameter.add_(torch.empty_like(parameter).normal_(std=0.02))
    return model


def _gain(name: str) -> float:
    """Peaked attention with weight in the sum: otherwise a random model's answers do not depend on the audio."""
    if name.endswith(("q_proj.weight", "query.weight")):
        return 4.0
    return 3.0 if name.endswith(("o_proj.weight", "cross_attn.out.weight")) else 1.0
