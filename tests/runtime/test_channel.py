"""Which channel is heard: the first, as checkpoints were trained, unless that would be to hear nothing."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.channel import Channel
from salmonrun.runtime.errors import AudioError, ConfigError
from salmonrun.runtime.latency.recording import STORY
from salmonrun.runtime.longform.config import TranscribeConfig
from salmonrun.runtime.longform.reader import PcmReader

F64 = npt.NDArray[np.float64]
COUNT = 40_000


def noise(seed: int, level: float = 0.1) -> F64:
    return np.random.default_rng(seed).normal(0, level, COUNT)


def stored(*channels: F64) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.stack(channels, axis=1), 16000, format="WAV", subtype="DOUBLE")
    return file.getvalue()


def heard(content: bytes, channel: Channel) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    """What both readers hear, which must be the same."""
    audio = load_audio(content, channel=channel)
    reader = PcmReader(content, channel=channel)
    assert np.array_equal(np.concatenate(list(reader.blocks())), audio.pcm)
    assert tuple(reader.notes) == audio.notes
    return audio.pcm, audio.notes


def test_first_mix_and_numbers() -> None:
    left, right = noise(0), noise(1)
    expected: dict[Channel, tuple[F64, str]] = {
        "first": (left, "channel 0 of 2 is used"),
        "mix": ((left + right) / 2, "2 channels are mixed"),
        0: (left, "channel 0 of 2 is used"),
        1: (right, "channel 1 of 2 is used"),
    }
    for channel, (samples, note) in expected.items():
        pcm, notes = heard(stored(left, right), channel)
        assert np.array_equal(pcm, samples.astype(np.float32))
        assert notes == (note,)


@pytest.mark.parametrize("level", [0.0, 1e-5])
def test_where_the_first_is_silent_the_loudest_is_heard(level: float) -> None:
    quiet, soft, loud = np.full(COUNT, level), noise(1, 0.01), noise(2)
    pcm, notes = heard(stored(quiet, soft, loud), "first")
    assert np.array_equal(pcm, loud.astype(np.float32))
    assert notes == ("channel 2 of 3 is used: channel 0 is silent",)
    assert np.array_equal(heard(stored(quiet, loud), 0)[0], quiet.astype(np.float32))  # who says 0 gets 0


def test_a_first_channel_that_speaks_late_or_softly_is_heard() -> None:
    late = np.zeros(COUNT)
    late[-1] = 2e-4  # -74 dBFS; silence is below -80
    pcm, notes = heard(stored(late, noise(1)), "first")
    assert np.array_equal(pcm, late.astype(np.float32))
    assert notes == ("channel 0 of 2 is used",)


def test_where_all_is_silent_the_first_is_heard() -> None:
    assert heard(stored(np.zeros(COUNT), np.full(COUNT, 1e-5)), "first")[1] == ("channel 0 of 2 is used",)


def test_one_channel_is_not_worth_a_note() -> None:
    channels: list[Channel] = ["first", "mix", 0]
    assert [heard(stored(noise(0)), channel)[1] for channel in channels] == [()] * 3


@pytest.mark.parametrize("open_source", [load_audio, PcmReader])
def test_channels_that_are_not_there(open_source: Any) -> None:
    with pytest.raises(AudioError, match="channel is 2; the audio has channels 0 to 1: choose one of these"):
        open_source(stored(noise(0), noise(1)), channel=2)
    for source, rate in ((stored(noise(0)), None), (noise(0), 16000), (load_audio(noise(0), 16000), None)):
        with pytest.raises(AudioError, match="channel is 1; the audio has only channel 0"):
            open_source(source, rate, channel=1)
    for wrong in ("left", True, 0.5, None):
        with pytest.raises(ConfigError, match="expected 'first', 'mix' or a number"):
            open_source(stored(noise(0)), channel=wrong)


def test_every_way_of_asking_takes_a_channel_and_notes_it(tiny_engine: Engine) -> None:
    config = GenerationConfig(max_new_tokens=8)
    content, right = stored(noise(0), noise(1)), noise(1).astype(np.float32)
    alone = tiny_engine.generate(right, sample_rate=16000, task="asr", config=config)
    note = "channel 1 of 2 is used"
    result = tiny_engine.generate(content, channel=1, task="asr", config=config)
    assert (result.token_ids, result.notes) == (alone.token_ids, (note,))
    assert "".join(tiny_engine.generate_iter(content, channel=1, task="asr", config=config)) == alone.text
    with tiny_engine.listen(content, channel=1) as heard:
        result = heard.ask(task="asr", config=config)
    assert (result.token_ids, result.notes) == (alone.token_ids, (note,))


def test_transcribe_takes_a_channel_and_notes_it(tiny_engine: Engine) -> None:
    spoken = load_audio(STORY).pcm[: 5 * 16000].astype(np.float64)
    content = stored(np.resize(noise(0), len(spoken)), spoken)

    def answers(source: Any, rate: int | None, channel: Channel) -> tuple[list[list[int]], list[str]]:
        segments, info = tiny_engine.transcribe(
            source,
            sample_rate=rate,
            channel=channel,
            generation=GenerationConfig(max_new_tokens=8),
            config=TranscribeConfig(vad="energy"),
        )
        return [segment.token_ids for segment in segments], info.notes

    (expected, _), (got, notes) = answers(spoken, 16000, "first"), answers(content, None, 1)
    assert got == expected != []
    assert "channel 1 of 2 is used" in notes
