"""How the LLM's matrices are stored in a bundle: their values, bits and blocks, and how that was chosen."""

from dataclasses import dataclass
from typing import Literal

from salmonrun.export.graphs.linear import BLOCK
from salmonrun.export.options import LlmPrecision
from salmonrun.runtime.parity import Choice
from salmonrun.training.tensors import LazyTensors

Block = Literal[32, 64]  # inputs of the LLM's matrices that share a scale
NEAREST = "round to nearest"
CALIBRATED = "rounded on calibration speech (GPTQ)"


@dataclass(frozen=True, eq=False)
class StoredLlm:
    """What the exporter writes of the LLM, for each decoder in its own form."""

    tensors: LazyTensors  # adapters merged, matrices as they were rounded
    precision: LlmPrecision  # of the matrices in the layers
    block: Block = BLOCK
    rounding: str = NEAREST
    int8: tuple[str, ...] = ()  # of these matrices, named without `.weight`; with int4 alone
    choice: Choice | None = None  # None: nothing was to be chosen
