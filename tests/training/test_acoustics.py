"""What is done to waveforms, against what it is said to be: frequencies, lengths, energies, decay."""

import numpy as np
import pytest

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.training.data.acoustics import (
    change_speed,
    insert_silence,
    limit_band,
    quiet_places,
    reverberate,
    room_response,
    shift_pitch,
    stretch,
    to_peak,
    trim,
)

LENGTH = 24_000
NOISE = 0.1 * np.random.default_rng(0).standard_normal(LENGTH).astype(np.float32)


def tone(hertz: float, length: int = LENGTH) -> F32:
    return np.sin(2 * np.pi * hertz * np.arange(length) / SAMPLE_RATE).astype(np.float32)


def loudest_hz(pcm: F32) -> float:
    spectrum = np.abs(np.fft.rfft(pcm * np.hanning(len(pcm))))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / len(pcm)


def power_db(pcm: F32, low: float, high: float) -> float:
    """Of what lies between two frequencies."""
    bins = np.fft.rfftfreq(len(pcm), 1 / SAMPLE_RATE)
    spectrum = np.abs(np.fft.rfft(pcm.astype(np.float64))) ** 2
    return float(10 * np.log10(spectrum[(bins >= low) & (bins < high)].sum() + 1e-30))


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.3, 2.0])
def test_stretching_changes_the_length_and_not_the_pitch(factor: float) -> None:
    longer = stretch(tone(220.0), factor)
    assert longer.dtype == np.float32
    assert len(longer) == int(LENGTH * factor)
    assert loudest_hz(longer) == pytest.approx(220.0, abs=2)
    middle = longer[2000:-2000]
    assert float(middle.std()) == pytest.approx(0.5**0.5, rel=0.02)  # windows add up to one, in phase


@pytest.mark.parametrize("semitones", [-5.0, -1.0, 3.0, 12.0])
def test_pitch_moves_by_semitones_and_the_length_stays(semitones: float) -> None:
    higher = shift_pitch(tone(300.0), semitones)
    assert abs(len(higher) - LENGTH) <= 2
    assert loudest_hz(higher) == pytest.approx(300 * 2 ** (semitones / 12), rel=0.01)


def test_speed_moves_both() -> None:
    faster = change_speed(tone(300.0), 1.25)
    assert abs(len(faster) - LENGTH / 1.25) <= 1
    assert loudest_hz(faster) == pytest.approx(375, rel=0.01)


def test_stretching_by_one_is_the_recording() -> None:
    assert np.allclose(stretch(NOISE, 1.0)[400:-800], NOISE[400:-800], atol=1e-6)


def test_a_band_keeps_what_is_in_it_and_nothing_else() -> None:
    line = limit_band(NOISE, 300, 3400)
    assert line.dtype == np.float32
    assert len(line) == LENGTH
    assert power_db(line, 400, 3300) == pytest.approx(power_db(NOISE, 400, 3300), abs=0.1)
    for low, high in ((0, 150), (3600, 8000)):
        assert power_db(line, low, high) < power_db(NOISE, low, high) - 20


@pytest.mark.parametrize("seconds", [0.1, 0.5])
@pytest.mark.parametrize("direct_db", [0.0, 12.0])
def test_an_echo_has_the_energy_and_the_decay_asked_for(seconds: float, direct_db: float) -> None:
    responses = [room_response(np.random.default_rng(seed), seconds, direct_db) for seed in range(50)]
    for response in responses:
        assert response[0] == 1
        assert 10 * np.log10(1 / np.sum(response[1:] ** 2)) == pytest.approx(direct_db, abs=1e-6)
        assert not response[1:40].any()  # no wall is nearer than half a metre
    length = min(len(response) for response in responses)
    mean = np.mean([response[:length] ** 2 for response in responses], axis=0)
    early, late = mean[length // 4 : length // 2].mean(), mean[length * 3 // 4 :].mean()
    assert 10 * np.log10(early / late) == pytest.approx(30, abs=1.5)  # half of the time: half of the 60 dB


def test_a_room_changes_neither_length_nor_level() -> None:
    wet = reverberate(NOISE, room_response(np.random.default_rng(0), 0.4, 3.0))
    assert len(wet) == LENGTH
    assert float(np.square(wet).mean()) == pytest.approx(float(np.square(NOISE).mean()), rel=1e-3)
    assert np.abs(np.corrcoef(wet, NOISE)[0, 1]) < 0.95
    dry = reverberate(NOISE, np.array([1.0]))
    assert np.allclose(dry, NOISE, atol=1e-5)
    assert not reverberate(np.zeros(500, np.float32), np.array([1.0, 0.5])).any()


def spoken() -> F32:
    """Three loud stretches with 100 ms and 20 ms of quiet between them, and quiet around."""
    quiet = 1e-4 * np.ones(1600, np.float32)
    return np.concatenate([quiet, NOISE[:4800], quiet, NOISE[:3200], quiet[:320], NOISE[:3200], quiet])


def test_quiet_places_lie_between_loud_ones_and_are_long_enough() -> None:
    (place,) = quiet_places(spoken())
    assert 6400 <= place < 8000
    assert quiet_places(NOISE) == []
    assert quiet_places(np.zeros(8000, np.float32)) == []
    assert quiet_places(np.zeros(50, np.float32)) == []


def test_trimming_leaves_what_is_between_the_first_and_the_last_loud_frame() -> None:
    assert np.array_equal(trim(spoken()), spoken()[1600:-1600])
    silence = np.zeros(1600, np.float32)
    assert np.array_equal(trim(silence), silence)


def test_inserted_silence_moves_the_rest_and_loses_nothing() -> None:
    pcm = insert_silence(NOISE[:1000], np.array([100, 600]), np.array([50, 0]))
    assert np.array_equal(pcm, np.concatenate([NOISE[:100], np.zeros(50, np.float32), NOISE[100:1000]]))


def test_a_peak_is_reached_to_the_decibel() -> None:
    assert 20 * np.log10(np.abs(to_peak(NOISE, -35.0)).max()) == pytest.approx(-35, abs=1e-3)
    assert not to_peak(np.zeros(10, np.float32), 0.0).any()
