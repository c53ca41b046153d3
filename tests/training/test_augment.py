"""What augmentation does to recordings, and that a seed repeats it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from salmonrun.runtime.audio import Audio, load_audio
from salmonrun.runtime.errors import ConfigError
from salmonrun.training.data.acoustics import mix
from salmonrun.training.data.augment import augment_audio, noise_files
from salmonrun.training.data.config import Augmentation


@pytest.fixture
def audio() -> Audio:
    return load_audio(0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32), 16000)


@pytest.fixture
def noises(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "short.wav", 0.3 * rng.standard_normal(5000), 16000)
    soundfile.write(tmp_path / "deep" / "long.flac", 0.01 * rng.standard_normal(40000), 8000)
    (tmp_path / "notes.txt").write_text("not a recording")
    return tmp_path


def ratio_db(pcm: np.ndarray, mixed: np.ndarray) -> float:
    added = mixed.astype(np.float64) - pcm
    return float(10 * np.log10(np.mean(np.square(pcm, dtype=np.float64)) / np.mean(np.square(added))))


@pytest.mark.parametrize("name", ["short.wav", "deep/long.flac"])
def test_recorded_noise_comes_at_the_ratio_asked_for(audio: Audio, noises: Path, name: str) -> None:
    """Whether it is shorter than the recording and repeated, or longer and of another rate."""
    settings = Augmentation(
        noise_files=(str(noises / name),), noise_files_p=1.0, noise_files_low_db=7.0, noise_files_high_db=7.0
    )
    noisy = augment_audio(audio, settings, np.random.default_rng(2), noise_files(settings))
    assert noisy.pcm.dtype == np.float32
    assert noisy.pcm.shape == audio.pcm.shape
    assert ratio_db(audio.pcm, noisy.pcm) == pytest.approx(7.0, abs=0.05)


def test_folders_are_searched_for_recordings(noises: Path) -> None:
    found = noise_files(Augmentation(noise_files=(str(noises),), noise_files_p=0.5))
    assert [path.name for path in found] == ["long.flac", "short.wav"]


def test_noise_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere is neither a file nor a folder with \.wav"):
        noise_files(Augmentation(noise_files=(str(tmp_path / "nowhere"),), noise_files_p=0.5))


def test_silence_has_no_ratio() -> None:
    noise = np.ones(100, np.float32)
    assert not mix(np.zeros(100, np.float32), noise, 10.0).any()
    assert np.array_equal(mix(noise, np.zeros(100, np.float32), 10.0), noise)


def test_the_same_seed_repeats_it_and_the_probability_counts(audio: Audio, noises: Path) -> None:
    settings = Augmentation(noise_p=0.5, gain_p=0.5, noise_files=(str(noises),), noise_files_p=0.5)
    files = noise_files(settings)
    once, again = (
        [augment_audio(audio, settings, np.random.default_rng(seed), files).pcm for seed in range(40)] for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    untouched = sum(np.array_equal(pcm, audio.pcm) for pcm in once)
    assert 1 <= untouched <= 12  # one in eight of 40


def test_gain_stays_within_its_range(audio: Audio) -> None:
    settings = Augmentation(gain_p=1.0, gain_db=6.0)
    gains = []
    for seed in range(30):
        louder = augment_audio(audio, settings, np.random.default_rng(seed)).pcm
        gains.append(20 * np.log10(np.abs(louder).max() / np.abs(audio.pcm).max()))
    assert -6.01 <= min(gains) < -2
    assert 2 < max(gains) <= 6.01


def test_noise_that_is_no_recording_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_text("no")
    with pytest.raises(ConfigError, match=r"broken\.wav cannot be read as audio"):
        noise_files(Augmentation(noise_files=(str(tmp_path),), noise_files_p=0.5))


# Pauses


PAUSES = Augmentation(pause_p=1.0, pause_s=0.5)


def test_pauses_are_silence_around_the_recording(audio: Audio) -> None:
    fronts = []
    for seed in range(30):
        pcm = augment_audio(audio, PAUSES, np.random.default_rng(seed)).pcm
        assert pcm.dtype == np.float32
        front = int(np.flatnonzero(pcm)[0])
        behind = len(pcm) - front - len(audio.pcm)
        assert np.array_equal(pcm[front : front + len(audio.pcm)], audio.pcm)
        assert not pcm[front + len(audio.pcm) :].any()
        assert 0 <= front <= 8000
        assert 0 <= behind <= 8000
        fronts.append(front)
    assert min(fronts) < 2000 < 6000 < max(fronts)


@pytest.mark.parametrize("max_s", [1.0, 1.2, 1.7])
def test_pauses_leave_room_in_the_window(audio: Audio, max_s: float) -> None:
    lengths = [len(augment_audio(audio, PAUSES, np.random.default_rng(seed), max_s=max_s).pcm) for seed in range(30)]
    assert max(lengths) <= round(max_s * 16000)
    assert min(lengths) >= len(audio.pcm)
    assert max_s == 1.0 or max(lengths) > len(audio.pcm)
    longer = Audio(np.ones(40_000, np.float32), 16000, 1, 2.5)
    assert len(augment_audio(longer, PAUSES, np.random.default_rng(0), max_s=2.0).pcm) == 40_000


def test_a_seed_repeats_pauses_and_the_probability_counts(audio: Audio) -> None:
    settings = Augmentation(pause_p=0.5, pause_s=0.5)
    once, again = (
        [augment_audio(audio, settings, np.random.default_rng(seed)).pcm for seed in range(40)] for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert 10 <= sum(len(pcm) == len(audio.pcm) for pcm in once) <= 30


@pytest.mark.parametrize("settings", [{"pause_p": 1.5}, {"pause_p": -0.1}, {"pause_s": -1.0}])
def test_impossible_pauses_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} is"):
        Augmentation(**settings)  # type: ignore[arg-type]


# Rooms, lines, levels, speakers and sounds


def test_a_pause_inside_parts_the_words_and_loses_none() -> None:
    rng = np.random.default_rng(0)
    word, quiet = rng.uniform(0.1, 0.2, 4800).astype(np.float32), np.full(1600, 1e-4, np.float32)
    pcm = np.concatenate([word, quiet, word, quiet, word])
    settings = Augmentation(inner_pause_p=1.0, inner_pause_s=0.5, inner_pauses=2)
    lengths = set()
    for seed in range(20):
        paused = augment_audio(Audio(pcm, 16000, 1, 1.1), settings, np.random.default_rng(seed)).pcm
        assert np.array_equal(paused[paused != 0], pcm)
        assert 1600 <= len(paused) - len(pcm) <= 2 * 8000
        assert np.array_equal(paused[:4800], word)
        assert np.array_equal(paused[-4800:], word)
        lengths.add(len(paused))
    assert len(lengths) == 20
    short = augment_audio(Audio(pcm, 16000, 1, 1.1), settings, np.random.default_rng(0), max_s=len(pcm) / 16000)
    assert np.array_equal(short.pcm, pcm)


def test_sounds_come_before_and_behind_the_recording_and_not_over_it(audio: Audio, noises: Path) -> None:
    settings = Augmentation(noise_files=(str(noises),), around_p=1.0, around_s=0.5)
    files = noise_files(settings)
    places = []
    for seed in range(20):
        pcm = augment_audio(audio, settings, np.random.default_rng(seed), files).pcm
        (front,) = [at for at in range(8001) if np.array_equal(pcm[at : at + 16000], audio.pcm)]
        around = np.concatenate([pcm[:front], pcm[front + 16000 :]])
        assert np.abs(around).max() <= np.abs(audio.pcm).max() * 1.0001
        assert (around != 0).mean() > 0.95
        assert len(around) <= 16000
        places.append(front)
    assert min(places) < 2000 < 6000 < max(places)
    full = augment_audio(audio, settings, np.random.default_rng(0), files, max_s=1.0)
    assert np.array_equal(full.pcm, audio.pcm)


def test_noise_comes_to_the_tasks_that_are_named(audio: Audio, noises: Path) -> None:
    settings = Augmentation(
        noise_files=(str(noises),), noise_files_p=1.0, around_p=1.0, noise_files_tasks=("asr", "qa")
    )
    files = noise_files(settings)
    caption, transcript = (
        augment_audio(audio, settings, np.random.default_rng(0), files, task=task).pcm for task in ("caption", "asr")
    )
    assert np.array_equal(caption, audio.pcm)
    assert len(transcript) > len(audio.pcm)


def test_levels_are_between_the_two(audio: Audio) -> None:
    settings = Augmentation(level_p=1.0, level_low_db=-30.0, level_high_db=-3.0)
    peaks = [
        20 * np.log10(np.abs(augment_audio(audio, settings, np.random.default_rng(seed)).pcm).max())
        for seed in range(30)
    ]
    assert -30.01 <= min(peaks) < -24
    assert -9 < max(peaks) <= -2.99


@pytest.mark.parametrize("kind", ["speed_p", "pitch_p", "reverb_p", "band_p"])
def test_every_kind_changes_the_recording_alone(audio: Audio, kind: str) -> None:
    settings = Augmentation(**{kind: 1.0})  # type: ignore[arg-type]
    assert settings.changes_waveform
    pcm = augment_audio(audio, settings, np.random.default_rng(0)).pcm
    assert pcm.dtype == np.float32
    assert not np.array_equal(pcm, audio.pcm)
    assert abs(len(pcm) - len(audio.pcm)) <= (0.12 * len(audio.pcm) if kind == "speed_p" else 2)
    assert np.array_equal(pcm, augment_audio(audio, settings, np.random.default_rng(0)).pcm)


def test_slow_speech_is_not_cut_where_the_window_ends(audio: Audio) -> None:
    settings = Augmentation(speed_p=1.0, speed=0.5)
    lengths = [len(augment_audio(audio, settings, np.random.default_rng(seed), max_s=1.1).pcm) for seed in range(20)]
    assert max(lengths) == 17600
    assert min(lengths) < 12000


@pytest.mark.parametrize(
    "settings",
    [
        {"reverb_p": 2.0},
        {"level_low_db": 1.0},
        {"level_high_db": 3.0},
        {"speed": 0.9},
        {"inner_pauses": 0},
        {"reverb_s": 0.0},
        {"pitch": -1.0},
        {"around_p": 0.5},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"augment.{next(iter(settings))}"):
        Augmentation(**settings)  # type: ignore[arg-type]


def test_what_leaves_waveforms_alone_may_be_cached() -> None:
    assert not Augmentation(mask_p=0.5).changes_waveform
