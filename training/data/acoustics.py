"""What rooms, lines, levels and speakers do to a recording, as functions of samples [N] at 16 kHz."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import soxr

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.features import F64

FRAME = SAMPLE_RATE // 100
AUDIBLE_DB = 30.0  # below the louder frames, at most: else it counts as silence
QUIET_DB = 20.0  # below the louder frames: where words part, and where plosives close
SHORTEST_QUIET = 3  # frames
STRETCH_WINDOW = SAMPLE_RATE // 25  # 40 ms: two periods of a deep voice
STRETCH_SEARCH = SAMPLE_RATE // 100
EDGE_HZ = 100.0  # over which a band fades out
SPEED_OF_SOUND = 343.0  # m/s
ABSORBED_DB = 60.0  # of a room's echo, after its reverberation time


def mix(pcm: F32, other: F32, snr_db: float) -> F32:
    """Add `other` [N] to `pcm` [N] at a signal-to-noise ratio in dB. Silence has no ratio: nothing is added to it."""
    power, other_power = (float(np.mean(np.square(x))) for x in (pcm, other))
    if not power or not other_power:
        return pcm
    return (pcm + other * np.sqrt(power / other_power / 10 ** (snr_db / 10))).astype(np.float32)


def trim(pcm: F32, edge_s: float = 0.0) -> F32:
    """From the first to the last 10 ms within 30 dB of the loudest ones, and so many seconds around them."""
    power = _frame_power(pcm)
    if not power.any():
        return pcm
    loud = np.flatnonzero(power > np.percentile(power, 95) * 10 ** (-AUDIBLE_DB / 10)) * FRAME
    edge = round(edge_s * SAMPLE_RATE)
    return pcm[max(0, loud[0] - edge) : loud[-1] + FRAME + edge]


def quiet_places(pcm: F32) -> list[int]:
    """Samples in the middle of each quiet stretch of at least 30 ms between louder ones."""
    power = _frame_power(pcm)
    if not power.any():
        return []
    quiet = power < np.percentile(power, 95) * 10 ** (-QUIET_DB / 10)
    edges = np.flatnonzero(np.diff(quiet.astype(np.int8))) + 1
    stretches = [(first, end) for first, end in pairwise(edges) if quiet[first] and end - first >= SHORTEST_QUIET]
    return [int(first + end) * FRAME // 2 for first, end in stretches]


def insert_silence(pcm: F32, places: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> F32:
    """Silence of `lengths` samples at `places`, which are samples of `pcm` in rising order."""
    pieces: list[F32] = []
    start = 0
    for place, length in zip(places, lengths, strict=True):
        pieces += [pcm[start:place], np.zeros(length, np.float32)]
        start = place
    return np.concatenate([*pieces, pcm[start:]])


def change_speed(pcm: F32, factor: float) -> F32:
    """Play `factor` times as fast, which moves pitch and formants too (Ko et al. 2015)."""
    return np.asarray(soxr.resample(pcm, SAMPLE_RATE * factor, SAMPLE_RATE), np.float32)


def shift_pitch(pcm: F32, semitones: float) -> F32:
    """Higher or lower at the same speed: stretched, and then played that much faster."""
    factor = 2 ** (semitones / 12)
    return change_speed(stretch(pcm, factor), factor)


def stretch(pcm: F32, factor: float) -> F32:
    """`factor` times as long at the same pitch, by overlapping windows that fit (WSOLA, Verhelst and Roelands 1993)."""
    half = STRETCH_WINDOW // 2
    window = np.hanning(STRETCH_WINDOW + 1)[:-1].astype(np.float32)
    count = max(1, int(len(pcm) * factor) // half)
    padded = np.pad(pcm, (half, STRETCH_WINDOW + STRETCH_SEARCH + half))
    out = np.zeros(count * half + STRETCH_WINDOW, np.float32)
    at = 0
    for index in range(count):
        wanted = int(index * half / factor)
        if index:  # what follows the piece before it in the recording would fit best
            low = max(0, wanted - STRETCH_SEARCH)
            places = padded[low : wanted + STRETCH_SEARCH + STRETCH_WINDOW]
            following = padded[at + half : at + half + STRETCH_WINDOW]
            at = low + int(np.argmax(np.correlate(places, following, "valid")))
        out[index * half : index * half + STRETCH_WINDOW] += padded[at : at + STRETCH_WINDOW] * window
    return out[half : half + int(len(pcm) * factor)]


def limit_band(pcm: F32, low_hz: float, high_hz: float) -> F32:
    """What a line lets through: frequencies between the two, fading over 100 Hz beyond them."""
    size = _fft_size(len(pcm))
    bins = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    rising = np.clip((bins - low_hz) / EDGE_HZ + 1, 0, 1)
    falling = np.clip((high_hz - bins) / EDGE_HZ + 1, 0, 1)
    return np.fft.irfft(np.fft.rfft(pcm, size) * rising * falling, size)[: len(pcm)].astype(np.float32)


def room_response(rng: np.random.Generator, seconds: float, direct_db: float) -> F64:
    """A small room's response: the direct sound, then an echo that dies away.

    Args:
        rng: draws the echo, noise as in the model of Moorer (1979).
        seconds: the reverberation time, after which the echo is 60 dB down.
        direct_db: energy of the direct sound over that of the echo.
    """
    time = np.arange(1, max(2, round(seconds * SAMPLE_RATE))) / SAMPLE_RATE
    echo = rng.standard_normal(len(time)) * 10 ** (-ABSORBED_DB / 20 * time / seconds)
    first = round(rng.uniform(1.0, 4.0) / SPEED_OF_SOUND * SAMPLE_RATE)  # the nearest wall is 0.5 to 2 m away
    echo[:first] = 0
    energy = max(1e-12, float(np.sum(np.square(echo))))
    return np.concatenate([[1.0], echo * np.sqrt(10 ** (-direct_db / 10) / energy)])


def reverberate(pcm: F32, response: F64) -> F32:
    """In a room, as long as it was and at the level that it had."""
    size = _fft_size(len(pcm) + len(response) - 1)
    wet = np.fft.irfft(np.fft.rfft(pcm, size) * np.fft.rfft(response, size), size)[: len(pcm)]
    power = float(np.mean(np.square(wet)))
    return (wet * np.sqrt(float(np.mean(np.square(pcm))) / power)).astype(np.float32) if power else pcm


def to_peak(pcm: F32, peak_db: float) -> F32:
    """Louder or softer, to a peak in dB below full scale. Silence stays."""
    peak = float(np.abs(pcm).max(initial=0))
    return pcm * np.float32(10 ** (peak_db / 20) / peak) if peak else pcm


def _fft_size(least: int) -> int:
    """A power of two: lengths with large prime factors take a hundred times as long."""
    return 1 << (least - 1).bit_length()


def _frame_power(pcm: F32) -> F64:
    """Mean square of each 10 ms; what is left behind the last whole one is not looked at."""
    frames = pcm[: len(pcm) // FRAME * FRAME].reshape(-1, FRAME)
    return np.asarray(np.square(frames, dtype=np.float64).mean(axis=1))
