"""parity.json: how near a bundle came to PyTorch when it was exported, and what it had to hold."""

import json
from dataclasses import dataclass

import numpy as np

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.errors import BundleError, ConfigError
from salmonrun.runtime.schema import from_dict

PARITY = "parity.json"
EXACT_TOLERANCE = 1e-4  # max abs difference of an fp32 bundle, for activations of order one


@dataclass(frozen=True)
class StageError:
    """Difference of one stage, bundle against PyTorch on the same input."""

    max_abs: float
    relative: float  # rms of the difference / rms of the reference
    scale: float  # rms of the reference

    @classmethod
    def between(cls, got: F32, reference: F32) -> "StageError":
        """Compare two arrays of one shape."""
        difference = got.astype(np.float64) - reference
        scale = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
        relative = float(np.sqrt(np.mean(np.square(difference)))) / max(scale, 1e-30)
        return cls(float(np.abs(difference).max()), relative, scale)


@dataclass(frozen=True)
class Parity:
    """What was measured, and the budget it was held against."""

    stages: dict[str, StageError]  # each on the reference's input
    end_to_end: StageError  # logits along the greedy path, from the recording
    tokens_compared: int
    tokens_agreeing: int  # where PyTorch, after the same tokens, chooses the same next one
    greedy_tokens_equal: bool
    audio_s: float
    budget: float | None  # None: exact
    llm_pieces: int  # 1: the LLM ran as a whole; else its layers in so many pieces, one after the other
    window: StageError | None  # where the bundle trims and the checkpoint pads: what that does to PyTorch's own logits
    measured_with: dict[str, str]

    @property
    def measured(self) -> dict[str, StageError]:
        """All that is held against the budget."""
        return {**self.stages, "end to end": self.end_to_end}

    @property
    def demanded(self) -> str:
        """What the bundle had to hold to be written at all."""
        if self.budget is None:
            return f"exact: {EXACT_TOLERANCE:.0e} of PyTorch or float32's rounding, and equal tokens"
        return f"relative error of every stage at most {self.budget:g}"

    def __str__(self) -> str:
        """In a line."""
        name, error = max(self.measured.items(), key=lambda item: item[1].relative)
        tokens = f"{self.tokens_agreeing} of {self.tokens_compared} tokens are PyTorch's choice"
        return f"{self.demanded}; largest {error.relative:.1e} ({name}), {tokens}"


def read_parity(bundle: Bundle) -> Parity:
    """What the exporter wrote.

    Raises:
        BundleError: the bundle has no parity.json, or it is not as the specification says.
    """
    if PARITY not in bundle.manifest.files:
        raise BundleError(f"{bundle.folder} has no {PARITY}; export the bundle again")
    path = bundle.path(PARITY)
    try:
        return from_dict(Parity, json.loads(path.read_bytes()), str(path))
    except (ValueError, ConfigError) as error:
        raise BundleError(f"{path} is not what an exporter writes ({error}); export the bundle again") from error
