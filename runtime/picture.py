"""matplotlib, which draws pictures where it is installed."""

from typing import Any

from salmonrun.runtime.errors import MissingExtraError


def load_figure(option: str) -> Any:
    """Its `Figure`, which needs no display and no state that others share.

    Args:
        option: what asks for a picture, named where there is no matplotlib.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(f"{option} needs matplotlib: pip install 'salmonrun[plot]'") from error
    return Figure
