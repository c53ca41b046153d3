"""The model in PyTorch: load, reference generation, conversion of published checkpoints."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from salmonrun.training.checkpoint import load as load
    from salmonrun.training.model.config import ModelConfig as ModelConfig
    from salmonrun.training.model.salmonn import SalmonnModel as SalmonnModel
else:
    from salmonrun.lazy import attach

    __getattr__, __dir__, __all__ = attach(
        __name__, {"checkpoint": ["load"], "model.config": ["ModelConfig"], "model.salmonn": ["SalmonnModel"]}
    )

# peft and transformers' Trainer import bitsandbytes where it is installed, and that warns on some CPUs that it has no
# `get_kernel` of the PyPI package called `kernels`. It lacks nothing: what it would fetch from the network is a faster
# product for inference, which no part of training uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

if __name__ == "training":  # a checkout's folder, imported by its own name
    from salmonrun.checkout import stand_in

    stand_in(__name__)
