"""The model in PyTorch: load, reference generation, conversion of published checkpoints."""

from training.checkpoint import load
from training.config import ModelConfig
from training.model import SalmonnModel

__all__ = ["ModelConfig", "SalmonnModel", "load"]
