"""What a model of a config costs, by its sizes alone: weights, memory, multiplications. Nothing is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.features import HOP
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.model.features import FRAMES_PER_S
from salmonrun.training.model.llm import build_llm, llm_config
from salmonrun.training.model.qformer import QFormer
from salmonrun.training.model.whisper import build_whisper
from salmonrun.training.pruning.layers import Part, count_layers, layer_prefix, parts_of

MIB = 2**20
AUDIO_S = 10.0  # the clip that encoders' work is said for
BYTES = {"16 bits": 2.0, "8 bits": 1.0, "4 bits": 0.5}  # of a weight; scales of blocks come on top


@dataclass(frozen=True)
class PartCost:
    """Of an encoder or the LLM."""

    layers: int
    parameters: int
    multiplications: int  # of an encoder, for AUDIO_S of audio; of the LLM, for a position, its cache apart


@dataclass(frozen=True)
class Cost:
    """Of a whole model."""

    parts: Mapping[str, PartCost]
    parameters: int  # of all parts and the Q-Former; a tied output layer counts once, adapters as merged
    cache_bytes: int  # keys and values of a position, in 16 bits


def cost(config: ModelConfig) -> Cost:
    """What a model costs."""
    parts: dict[str, PartCost] = {part: _part(config, part) for part in parts_of(config)}
    with torch.device("meta"):
        qformer = _size(QFormer(config))
    llm = llm_config(config.llm)
    head_dim = getattr(llm, "head_dim", None) or llm.hidden_size // llm.num_attention_heads
    cache = 2 * 2 * llm.num_hidden_layers * llm.num_key_value_heads * head_dim
    return Cost(parts, qformer + sum(part.parameters for part in parts.values()), cache)


def format_costs(before: Cost, after: Cost) -> str:
    """Both side by side, with what is left of each figure."""
    rows: list[tuple[str, float, float]] = []
    for part, whole in before.parts.items():
        work = "MAC a position" if part == "llm" else f"MAC for {AUDIO_S:g} s"
        left = after.parts[part]
        rows += [
            (f"{part}: layers", whole.layers, left.layers),
            (f"{part}: million weights", whole.parameters / 1e6, left.parameters / 1e6),
            (f"{part}: million {work}", whole.multiplications / 1e6, left.multiplications / 1e6),
        ]
    rows.append(("all: million weights", before.parameters / 1e6, after.parameters / 1e6))
    rows += [
        (f"all: MiB in {name}", before.parameters * size / MIB, after.parameters * size / MIB)
        for name, size in BYTES.items()
    ]
    rows.append(("KV cache: KiB a position, 16 bits", before.cache_bytes / 1024, after.cache_bytes / 1024))
    lines = [f"{'':36}{'before':>12}{'after':>12}{'left':>8}"]
    lines += [f"{name:36}{one:12,.4g}{other:12,.4g}{other / one:8.0%}" for name, one, other in rows]
    return "\n".join(lines)


def _part(config: ModelConfig, part: Part) -> PartCost:
    with torch.device("meta"):
        module = _build(config, part)
    layers = module.get_submodule(layer_prefix(config, part).removesuffix("."))
    matrices = sum(layer.weight.numel() for layer in layers.modules() if isinstance(layer, nn.Linear))
    count = count_layers(config, part)
    if part == "llm":
        head = config.llm_dim * int(config.llm["vocab_size"])
        return PartCost(count, _size(module), matrices + head)
    positions, width = _positions(config, part)
    # Linear layers at every position, and two products of all positions with all of them in attention.
    return PartCost(count, _size(module), positions * matrices + 2 * positions**2 * width * count)


def _build(config: ModelConfig, part: Part) -> nn.Module:
    if part == "llm":
        return build_llm(config.llm, None)
    if part == "whisper":
        return build_whisper(config.whisper, None)
    assert config.audio_encoder is not None, "parts_of leaves it out"
    return config.audio_encoder.build()


def _positions(config: ModelConfig, part: Part) -> tuple[int, int]:
    """States that an encoder computes for AUDIO_S of audio, and their width."""
    if part == "whisper":
        heard = AUDIO_S if config.audio.window == "trimmed" else config.audio.max_s
        return round(min(heard, config.audio.max_s) * FRAMES_PER_S), config.whisper.d_model
    encoder = config.audio_encoder
    assert encoder is not None, "parts_of leaves it out"
    frames = round(AUDIO_S * SAMPLE_RATE) // HOP
    return frames // encoder.fbank.patch_frames * encoder.fbank.patch_tokens, encoder.dim


def _size(module: nn.Module) -> int:
    """Weights, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters())
