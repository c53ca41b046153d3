"""What can run the encoders, for tests that run on each, and small checkpoints of every kind."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from salmonrun.training.model.config import ModelConfig, WhisperConfig
from salmonrun.training.model.encoders import AudioEncoderConfig
from salmonrun.training.model.encoders.beats import BeatsConfig
from salmonrun.training.model.encoders.eat import EatConfig
from salmonrun.training.starting.presets import preset

BUILT = find_spec("salmonrun.kernels.cpu._native") is not None
ENCODERS = ("onnx", pytest.param("native", marks=pytest.mark.skipif(not BUILT, reason="the kernels were not built")))
FILES = {"whisper": "whisper.bin", "audio_encoder": "audio_encoder.bin"}

EAT = EatConfig(dim=48, layers=2, heads=3, ffn=64, max_patches=200)
BEATS = BeatsConfig(dim=64, layers=2, heads=2, ffn=128, patch_dim=64)
KINDS: dict[str, AudioEncoderConfig | None] = {"eat": EAT, "beats": BEATS, "none": None}
# Odd on purpose: nothing is a whole number of groups or blocks.
ODD_BEATS = BeatsConfig(
    dim=72, layers=3, heads=3, ffn=100, patch_dim=40, conv_pos=33, conv_pos_groups=4, num_buckets=32, max_distance=100
)
ODD_EAT = EatConfig(dim=72, layers=1, heads=3, ffn=100, max_patches=200)
# Ranks of linear layers, some as wide as whole groups and some not.
RANKS = {
    "layers.0.self_attn.q_proj": 7,
    "layers.0.self_attn.k_proj": 16,
    "layers.0.fc1": 21,
    "layers.1.self_attn.out_proj": 1,
    "layers.1.fc2": 32,
}
ODD_WHISPER = WhisperConfig(d_model=56, layers=2, heads=4, ffn=100)


def config(encoder: AudioEncoderConfig | None, **changes: Any) -> ModelConfig:
    """The tiny preset with this audio encoder."""
    return replace(preset("tiny"), audio_encoder=encoder, **changes)


def stages(names: set[str], native: bool = BUILT) -> set[str]:
    """The stages of the gate, with those of native encoders where there are any."""
    encoders = {name for name in names if name in FILES or name.startswith("blocks")}
    return names | ({f"{name}, native" for name in encoders} if native else set())


def size(bundle: Path) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
