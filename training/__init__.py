"""The model in PyTorch: load, reference generation, conversion of published checkpoints."""

import logging

from training.checkpoint import load
from training.config import ModelConfig
from training.model import SalmonnModel

__all__ = ["ModelConfig", "SalmonnModel", "load"]

# peft and transformers' Trainer import bitsandbytes where it is installed, and that warns on some CPUs that it has no
# `get_kernel` of the PyPI package called `kernels`. It lacks nothing: what it would fetch from the network is a faster
# product for inference, which no part of training uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
