"""Features against the published implementations."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.config import AudioConfig, FbankConfig, WindowConfig
from salmonrun.runtime.features import audio_tokens, fbank, log_mel, whisper_frames
from salmonrun.training.model.encoders.eat import EAT_FBANK

F32 = npt.NDArray[np.float32]
WINDOW = 480_000  # samples in 30 s
CONFIG = AudioConfig()
BEATS = FbankConfig()


def noise(samples: int, level: float, seed: int = 0) -> F32:
    """Noise that swells and fades, so that loud and quiet frames are neighbours."""
    rng = np.random.default_rng(seed)
    envelope = 10 ** rng.uniform(-2, 0, samples // 800 + 1).repeat(800)[:samples]
    return (level * envelope * rng.normal(size=samples)).clip(-1, 1).astype(np.float32)


# log-mel


@pytest.fixture(scope="module", params=[80, 128])
def extractor(request: pytest.FixtureRequest) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=request.param)


@pytest.mark.parametrize("level", [0.3, 1e-3])
@pytest.mark.parametrize("samples", [400, 16_000, 16_001, 100_037, WINDOW - 201, WINDOW - 100, WINDOW])
def test_log_mel_is_whispers(extractor: WhisperFeatureExtractor, samples: int, level: float) -> None:
    pcm = noise(samples, level)
    # The numpy path of the original computes in float64, as ours does.
    expected = extractor._np_extract_fbank_features(np.pad(pcm, (0, WINDOW - samples))[None], device="cpu")[0]
    found = log_mel(pcm, AudioConfig(n_mels=extractor.feature_size), 3000)
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (extractor.feature_size, 3000)
    assert np.abs(found - expected).max() <= 1e-4


def test_log_mel_of_speech_is_the_whole_extractors(extractor: WhisperFeatureExtractor, speech: Path) -> None:
    pcm = load_audio(speech).pcm
    expected = extractor(pcm, sampling_rate=16000, return_tensors="np").input_features[0]
    assert np.abs(log_mel(pcm, AudioConfig(n_mels=extractor.feature_size), 3000) - expected).max() <= 1e-4


@pytest.mark.parametrize("frames", [34, 102, 2992])
def test_trimmed_log_mel_is_whispers_of_the_shorter_window(extractor: WhisperFeatureExtractor, frames: int) -> None:
    pcm = noise(frames * 160 - 77, 0.3)
    padded = np.pad(pcm, (0, frames * 160 - len(pcm)))
    expected = extractor._np_extract_fbank_features(padded[None], device="cpu")[0]
    assert np.abs(log_mel(pcm, AudioConfig(n_mels=extractor.feature_size), frames) - expected).max() <= 1e-4


def test_log_mel_cuts_what_is_longer_than_the_window() -> None:
    pcm = noise(WINDOW + 5000, 0.3)
    assert np.array_equal(log_mel(pcm, AudioConfig(), 3000), log_mel(pcm[:WINDOW], AudioConfig(), 3000))


def test_log_mel_of_silence_is_the_floor() -> None:
    assert np.array_equal(
        log_mel(np.zeros(16_000, np.float32), AudioConfig(), 3000), np.full((80, 3000), -1.5, np.float32)
    )


# fbank


def kaldi_fbank(wave: torch.Tensor, exponent: float = 0.85) -> npt.NDArray[np.float64]:
    """torchaudio.compliance.kaldi.fbank(num_mel_bins=128, frame_length=25, frame_shift=10), in float64.

    The window is "hanning" with an exponent of 1.
    """
    frames = wave.unfold(0, 400, 160)  # snip_edges: whole frames only
    frames = frames - frames.mean(dim=1, keepdim=True)  # remove_dc_offset
    shifted = torch.nn.functional.pad(frames[None], (1, 0), mode="replicate")[0]
    frames = frames - 0.97 * shifted[:, :-1]
    frames = frames * torch.hann_window(400, periodic=False, dtype=torch.float64).pow(exponent)
    frames = torch.nn.functional.pad(frames, (0, 112))  # round_to_power_of_two
    spectrum = torch.fft.rfft(frames).abs().pow(2.0)  # [frames, 257]

    energies = spectrum @ kaldi_banks().T
    floor = torch.tensor(torch.finfo(torch.float32).eps, dtype=torch.float64)
    return torch.maximum(energies, floor).log().numpy()


@cache
def kaldi_banks() -> torch.Tensor:
    """Triangles [128, 257] on Kaldi's mel scale."""

    def mel(hz: float) -> float:
        return 1127.0 * math.log(1.0 + hz / 700.0)

    low, high = mel(20.0), mel(8000.0)
    step = (high - low) / 129
    banks = torch.zeros(128, 257, dtype=torch.float64)
    for bank in range(128):
        left, center, right = (low + (bank + i) * step for i in range(3))
        for line in range(256):  # Kaldi has no weight for the Nyquist line
            at = mel(line * 16000 / 512)
            weight = (at - left) / (center - left) if at <= center else (right - at) / (right - center)
            banks[bank, line] = max(0.0, weight)
    return banks


@pytest.mark.parametrize("level", [1.0, 0.3, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("samples", [400, 559, 560, 16_000, 20_123])
def test_fbank_is_kaldis(samples: int, level: float) -> None:
    pcm = noise(samples, level)
    found = fbank(pcm, BEATS)
    expected = (kaldi_fbank(torch.from_numpy(pcm).double() * 2**15) - 15.41663) / (2 * 6.55582)
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (1 + (samples - 400) // 160, 128)
    assert np.abs(found - expected).max() <= 1e-3


@pytest.mark.parametrize("level", [1.0, 0.3, 1e-2, 1e-4])
@pytest.mark.parametrize(("samples", "frames"), [(400, 16), (2800, 16), (2960, 32), (16_000, 112), (160_000, 1008)])
def test_eats_fbank_is_kaldis_behind_its_own_front_end(samples: int, frames: int, level: float) -> None:
    """As cwx-worst-one/EAT's feature_extract.py: the mean taken off, zeros behind, then normalised."""
    pcm = noise(samples, level) + np.float32(0.01)
    wave = torch.from_numpy(pcm).double()
    bank = kaldi_fbank(wave - wave.mean(), exponent=1.0)
    padded = np.concatenate([bank, np.zeros((frames - len(bank), 128))])
    found = fbank(pcm, EAT_FBANK)
    assert found.dtype == np.float32
    assert found.shape == (frames, 128)
    assert np.abs(found - (padded + 4.268) / (2 * 4.569)).max() <= 1e-4
    assert audio_tokens(samples, EAT_FBANK) == frames // 2
    assert audio_tokens(samples, BEATS) == 8 * (len(bank) // 16)


def test_fbank_of_a_loud_tone_with_a_dc_offset_is_kaldis() -> None:
    seconds = np.arange(16_000) / 16_000
    pcm = (0.3 + 0.6 * np.sin(2 * np.pi * 1000 * seconds)).astype(np.float32)
    expected = (kaldi_fbank(torch.from_numpy(pcm).double() * 2**15) - 15.41663) / (2 * 6.55582)
    assert np.abs(fbank(pcm, BEATS) - expected).max() <= 1e-3


def test_fbank_of_silence_is_the_floor() -> None:
    floor = (math.log(np.finfo(np.float32).eps) - 15.41663) / (2 * 6.55582)
    assert np.allclose(fbank(np.zeros(16_000, np.float32), BEATS), floor, atol=1e-6)


def test_fbank_is_the_published_codes(golden: Path, speech: Path) -> None:
    with np.load(golden / "beats" / "expected.npz") as expected:
        found = fbank(load_audio(speech).pcm, BEATS)
        assert found.shape == expected["fbank"].shape
        assert np.abs(found - expected["fbank"]).max() <= 1e-3


def test_fbank_normalisation_is_the_configs() -> None:
    pcm = noise(16_000, 0.3)
    plain = fbank(pcm, FbankConfig(mean=0.0, scale=1.0))
    assert np.allclose(fbank(pcm, BEATS), (plain - 15.41663) / (2 * 6.55582), atol=1e-5)


# Frame counts


@given(st.integers(1, WINDOW), st.integers(1, 60), st.integers(1, 60))
def test_padded_frames_are_always_1500(samples: int, frames: int, stride: int) -> None:
    assert whisper_frames(samples, CONFIG, WindowConfig(frames, stride)) == 1500


@given(st.integers(1, WINDOW), st.integers(1, 60), st.integers(1, 60))
def test_trimmed_frames_are_the_fewest_whole_windows_that_hold_the_audio(
    samples: int, frames: int, stride: int
) -> None:
    window = WindowConfig(frames, stride)
    count = whisper_frames(samples, AudioConfig(window="trimmed"), window)
    needed = math.ceil(samples / 320)
    assert frames <= count <= 1500
    if count < 1500:
        assert count >= needed
        assert (count - frames) % stride == 0
    fewer = count - stride
    assert fewer < frames or fewer < needed or count == 1500
    assert window.count(count) >= 1


@pytest.mark.parametrize(("seconds", "frames"), [(0.01, 17), (0.34, 17), (0.3401, 34), (1.0, 51), (29.92, 1496)])
def test_trimmed_frames_of_the_published_window(seconds: float, frames: int) -> None:
    assert whisper_frames(round(seconds * 16_000), AudioConfig(window="trimmed"), WindowConfig()) == frames
