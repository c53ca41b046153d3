"""Which values the LLM's matrices get: as they are, rounded on speech, or chosen within a budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from salmonrun.export.budget.choice import choose
from salmonrun.export.options import ExportOptions
from salmonrun.export.progress import Progress
from salmonrun.export.weights.calibrated import rounded_llm
from salmonrun.export.weights.stored import CALIBRATED, StoredLlm
from salmonrun.training.checkpoint import Checkpoint
from salmonrun.training.data.annotation import Entry


@dataclass(frozen=True)
class Calibration:
    """Recordings with transcripts, and where what was made of them is kept while an export runs."""

    rounding: Sequence[Entry]  # that weights are rounded on
    measuring: Sequence[Entry]  # others, that settings are compared on
    folder: Path


def stored_llm(
    source: Checkpoint, options: ExportOptions, calibration: Calibration | None, progress: Progress
) -> StoredLlm:
    """The LLM as the bundle will have it.

    Args:
        source: the checkpoint.
        options: of the bundle.
        calibration: of int4; None: weights are rounded to the nearest values.
        progress: shows the passes.

    Raises:
        ParityError: nothing is within the options' budget.
    """
    if calibration is None:
        return StoredLlm(source.merged_llm(), options.llm_precision)
    progress("rounding llm")
    tensors = rounded_llm(source, calibration.rounding, calibration.folder, progress)
    rounded = StoredLlm(tensors, "int4", rounding=CALIBRATED)
    if options.budget is None:
        return rounded
    return choose(source, rounded, calibration.measuring, options, options.budget, calibration.folder, progress)
