"""How speech is parted at pauses: one rule for streams and for long recordings."""

from salmonrun.runtime.audio import SAMPLE_RATE

PAUSE_S = 0.35  # so long a pause parts what is said; within sentences people hardly make such
BEFORE_S = 0.5  # kept in front of speech: detectors need a moment to be sure
BEHIND_S = 0.3  # kept behind it: words fade out


def before(late: int, wanted_s: float = BEFORE_S) -> int:
    """Samples to keep in front of the hop by which speech is sure, where it was noticed so many samples late."""
    wanted = round(wanted_s * SAMPLE_RATE)
    return max(wanted, wanted // 2 + late)


def behind(pause_s: float, wanted_s: float = BEHIND_S) -> int:
    """Samples to keep behind speech that ends with such a pause: half of it is left for what follows."""
    return round(min(wanted_s, BEHIND_S, pause_s / 2) * SAMPLE_RATE)
