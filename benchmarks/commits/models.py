"""The checkpoints that both commits export: the same files for both, made once, by the newer code."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.commits.random_models import random_config
from salmonrun.runtime.config import AudioConfig, BlockConfig, WindowConfig
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import LLAMA_3_2_1B, preset

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "assets" / "golden"
QUANTIZED = ("--encoder-precision", "int8", "--llm-precision", "int4")
RANDOM_QUANTIZED = (*QUANTIZED, "--parity-budget", "2")  # random weights amplify what 4 bits round off
RANDOM_COUNT = 20


@dataclass(frozen=True)
class Model:
    """A checkpoint, and how it is exported."""

    name: str
    checkpoint: Callable[[Path], Path]  # finds or makes it in the folder of checkpoints
    options: tuple[str, ...] = ()  # of its export

    @property
    def group(self) -> str:
        """What its figures are added up with."""
        return self.name.rstrip("0123456789").rstrip("-") if self.name.startswith("random") else self.name


def make_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder, made whole or not at all."""
    if not folder.exists():
        scratch = folder.with_name(f".{folder.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.parent.mkdir(parents=True, exist_ok=True)
        make(scratch)
        scratch.rename(folder)
    return folder


def demo(folder: Path) -> Path:
    """The trained one of the older of both commits, which newer code can read; the other way round it need not."""
    return folder / "demo"


def take_demo(base: Path, folder: Path) -> None:
    """Put the one of the commit that is checked out in `base` among the checkpoints."""
    shutil.rmtree(folder / "demo", ignore_errors=True)
    shutil.copytree(base / "demo" / "checkpoint", folder / "demo")


def golden(folder: Path) -> Path:
    """A tiny one in the published layout, whose answers the published code has given."""
    salmonn = GOLDEN / "salmonn"
    parts = {"whisper": salmonn / "whisper", "audio-encoder": GOLDEN / "beats" / "beats.pt", "llm": salmonn / "llm"}
    options = [word for part, path in parts.items() for word in (f"--{part}", str(path))]
    return make_once(
        folder / "golden", lambda out: _training("convert", str(salmonn / "salmonn.pth"), str(out), *options)
    )


def from_preset(name: str, *options: str) -> Callable[[Path], Path]:
    """Random weights in a size that has a name."""
    return lambda folder: make_once(
        folder / name, lambda out: _training("init", str(out), "--preset", name, "--seed", "0", *options)
    )


def from_config(config: ModelConfig, seed: int, dtype: torch.dtype | None = None) -> Callable[[Path], Path]:
    """Random weights in any size; another one has another folder."""
    own = hashlib.sha256(f"{config} {seed} {dtype}".encode()).hexdigest()[:8]
    return lambda folder: make_once(
        folder / f"{config.name}-{own}", lambda out: init_checkpoint(config, out, seed, dtype)
    )


def _training(*arguments: str) -> None:
    subprocess.run((sys.executable, "-m", "training", *arguments), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def llm_alone() -> ModelConfig:
    """The LLM of a published size behind encoders that cost next to nothing."""
    tiny, published = preset("tiny"), preset("v3-turbo-llama-1b")
    return replace(
        tiny,
        name="llama-1b-tiny-encoders",
        llm=LLAMA_3_2_1B,
        prompt=published.prompt,
        audio=AudioConfig(window="trimmed", log_mel_max=1.5),
        qformer=replace(tiny.qformer, window=WindowConfig(frames=16, stride=16)),
        streaming=BlockConfig(sizes=(16, 32, 64), lookbacks=(160, 320)),
    )


def of_random_weights(seed: int) -> Model:
    """One of any dimensions; every fourth in few bits."""
    options = (*QUANTIZED, "--parity-budget", "10") if seed % 4 == 3 else ()
    return Model(f"random-{seed}", from_config(random_config(seed), seed), options)


MODELS = {
    model.name: model
    for model in (
        Model("demo", demo, QUANTIZED),
        Model("demo-fp32", demo),
        Model("golden", golden),
        Model("tiny", from_preset("tiny")),
        *map(of_random_weights, range(RANDOM_COUNT)),
    )
}
# What latency is measured of.
SHAPES = {
    model.name: model
    for model in (
        MODELS["demo"],
        MODELS["tiny"],
        Model("1b-llm", from_config(llm_alone(), 0, torch.bfloat16), RANDOM_QUANTIZED),
        Model("1b-streaming", from_preset("v3-turbo-llama-1b-streaming", "--dtype", "bfloat16"), RANDOM_QUANTIZED),
    )
}
