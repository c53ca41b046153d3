"""A network whose output is no number is refused where that happens, under its own name."""

import numpy as np
import numpy.typing as npt

from salmonrun.runtime.errors import NotFiniteError


def check_finite(values: npt.NDArray[np.float32], stage: str) -> None:
    """Refuse the output of a stage that holds NaN or infinity: nothing that follows could be told from an answer.

    Raises:
        NotFiniteError: it does.
    """
    # A sum is finite only if every summand is, and takes no array of flags.
    with np.errstate(all="ignore"):
        if np.isfinite(values.sum()):
            return
    wrong = ~np.isfinite(values)
    if not (count := int(wrong.sum())):
        return  # large values, whose sum alone was too large
    raise NotFiniteError(
        f"the output of the {stage} has {count} values of {values.size} that are not finite, the first is "
        f"{values[wrong][0]}; expected numbers: its weights are damaged, or too large for their precision. "
        "salmonrun check compares the bundle with what was exported; then export it again, with another precision"
    )
