"""PCM in pieces of any length becomes the same hops."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from salmonrun.runtime.audio import F32, load_audio
from salmonrun.runtime.errors import AudioError
from salmonrun.runtime.streaming.pcm import PcmInput
from salmonrun.runtime.vad import VAD_HOP
from tests.helpers.streams import noise, pieces


def collect(parts: Iterable[npt.NDArray[Any]], rate: int = 16000) -> tuple[list[F32], F32]:
    """Hops, and what does not fill one in the end."""
    source, hops, brought = PcmInput(rate), [], 0
    for part in parts:
        brought += source.add(part)
        hops += list(source.hops())
    brought += source.finish()
    hops += list(source.hops())
    rest = source.waiting
    assert np.array_equal(source.rest(), rest)
    assert len(source.waiting) == 0
    assert brought == sum(map(len, hops)) + len(rest)
    return hops, rest


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_however_it_is_cut(rate: int) -> None:
    pcm = noise(rate + 123)
    hops, rest = collect([pcm], rate)
    assert all(hop.shape == (VAD_HOP,) and hop.dtype == np.float32 for hop in hops)
    assert len(rest) < VAD_HOP
    rng = np.random.default_rng(1)
    for parts in (pcm.reshape(-1, 1), pieces(pcm, rng, 50), pieces(pcm, rng, 3000), pieces(pcm, rng, rate)):
        other_hops, other_rest = collect(parts, rate)
        assert np.array_equal(other_hops, hops)
        assert np.array_equal(other_rest, rest)


@pytest.mark.parametrize(("rate", "tolerance"), [(16000, 0), (8000, 1e-6), (44100, 1e-6), (48000, 1e-6)])
def test_it_is_what_a_recording_becomes(rate: int, tolerance: float) -> None:
    """But for the float32 in which a stream is resampled, and a sample at the end."""
    pcm = noise(rate + 77)
    hops, rest = collect([pcm], rate)
    whole = load_audio(pcm, rate, min_s=0.0).pcm
    streamed = np.concatenate([*hops, rest])
    assert abs(len(streamed) - len(whole)) <= 1
    shorter = min(len(streamed), len(whole))
    assert np.abs(streamed[:shorter] - whole[:shorter]).max() <= tolerance


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
def test_types_are_alike(dtype: str) -> None:
    pcm = noise(4000)
    full_scale = {"int16": 2**15, "int32": 2**31}.get(dtype, 1)
    stored = (pcm.astype(np.float64) * full_scale).astype(dtype)
    hops, rest = collect([stored[:1000], stored[1000:]])
    assert np.array_equal(np.concatenate([*hops, rest]), pcm)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_nothing_at_all(rate: int) -> None:
    for parts in ([], [np.zeros(0, np.int16)], [np.zeros(0, np.float32)] * 2):
        hops, rest = collect(parts, rate)
        assert hops == []
        assert len(rest) == 0


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        ([0.0, 0.1], "was given a list; expected a numpy array"),
        (b"\x00\x00", "was given a bytes"),
        (np.zeros((2, 2), np.float32), r"shape \(2, 2\); expected \[N\], one channel"),
        (np.zeros(3, np.int64), "dtype int64; expected float32"),
        (np.array([0.0, np.nan]), "sample 101 is nan"),
        (np.array([np.inf]), "sample 100 is inf"),
        (np.array([3000.0]), "divide 16-bit values by 32768"),
    ],
)
def test_what_is_no_pcm_is_refused_and_leaves_no_trace(piece: Any, message: str) -> None:
    source = PcmInput(16000)
    source.add(noise(100))
    with pytest.raises(AudioError, match=message):
        source.add(piece)
    source.add(noise(100, 1))
    assert np.array_equal(source.waiting, np.concatenate([noise(100), noise(100, 1)]))


@pytest.mark.parametrize("rate", [0, -16000, 999, 10**6])
def test_absurd_rates_are_refused(rate: int) -> None:
    with pytest.raises(AudioError, match=f"sample_rate is {rate}; expected 1000 to 768000 Hz"):
        PcmInput(rate)
