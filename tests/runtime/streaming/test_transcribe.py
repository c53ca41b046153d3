"""`Engine.transcribe`: long recordings against `generate` on their windows, and what is kept in the books."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import jiwer
import numpy as np
import pytest
import soundfile

from salmonrun.runtime import (
    AudioError,
    CapacityError,
    Engine,
    GenerationConfig,
    PromptError,
    Segment,
    TranscribeConfig,
    TranscriptInfo,
)
from salmonrun.runtime.audio import F32, Audio
from salmonrun.runtime.longform import transcribe as module
from salmonrun.runtime.longform.batch import WindowAnswer
from salmonrun.runtime.longform.reader import PcmReader
from salmonrun.runtime.longform.transcribe import transcribe
from salmonrun.runtime.longform.windows import Window
from salmonrun.runtime.prompt import PromptIds
from salmonrun.runtime.request import Request
from salmonrun.runtime.search import Hypothesis, StopRules
from salmonrun.runtime.terms import WHENEVER
from salmonrun.runtime.vad import VAD_HOP, Vad
from tests.helpers.streams import VARIED, cut_at

RECORDINGS = Path(__file__).parents[3] / "demo" / "recordings"
SPOKEN = [
    entry for entry in json.loads((RECORDINGS / "annotation.json").read_text())["annotation"] if entry["task"] == "asr"
]


class Loudness:
    """Speech is what is loud."""

    name, late = "loudness", 0

    def is_speech(self, hop: F32) -> bool:
        return float(np.abs(hop).max()) > 0.01


@pytest.fixture
def loudness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_vad", lambda kind: Vad("loudness", Loudness))


def noise(seconds: float, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16000)).astype(np.float32)


def silence(seconds: float) -> F32:
    return np.zeros(round(seconds * 16000), np.float32)


def bursts(*seconds: float) -> F32:
    """Noises with a second of silence before each and after the last."""
    parts = [part for i, length in enumerate(seconds) for part in (silence(1), noise(length, i))]
    return np.concatenate([*parts, silence(1)])


# Token for token


@pytest.mark.usefixtures("loudness")
@pytest.mark.parametrize(
    "config",
    [VARIED, replace(VARIED, num_beams=2), GenerationConfig(max_new_tokens=12, do_sample=True, temperature=2, seed=3)],
    ids=["greedy", "beams", "sampled"],
)
def test_each_window_is_answered_as_alone(tiny_engine: Engine, config: GenerationConfig) -> None:
    pcm = bursts(0.2, 3.1, 1.7, 0.9, 2.2)
    segments, info = tiny_engine.transcribe(pcm, sample_rate=16000, generation=config, config=cut_at(batch_size=3))
    taken = list(segments)
    assert len(taken) == info.windows == 5
    for segment in taken:
        assert segment.window == (segment.start_sample, segment.end_sample)
        alone = tiny_engine.generate(pcm[slice(*segment.window)], sample_rate=16000, task="asr", config=config)
        assert (segment.text, segment.token_ids) == (alone.text, alone.token_ids)
        assert segment.finish_reason == alone.finish_reason
    assert len({tuple(segment.token_ids) for segment in taken}) > 1
    assert "0.974 s padded with zeros to 1 s" in taken[0].notes
    assert info.finished


@pytest.mark.usefixtures("loudness")
def test_a_stop_string_ends_one_of_a_batch(tiny_engine: Engine) -> None:
    pcm = bursts(1.0, 3.1)
    _, second = tiny_engine.transcribe(pcm, sample_rate=16000, generation=VARIED, config=cut_at())[0]
    stop = tiny_engine.model.tokenizer.decode(second.token_ids[4:5]).strip()
    config = replace(VARIED, stop_strings=(stop,))
    for segment in tiny_engine.transcribe(pcm, sample_rate=16000, generation=config, config=cut_at())[0]:
        alone = tiny_engine.generate(pcm[slice(*segment.window)], sample_rate=16000, task="asr", config=config)
        assert (segment.text, segment.token_ids, segment.finish_reason) == (
            alone.text,
            alone.token_ids,
            alone.finish_reason,
        )


@pytest.mark.usefixtures("loudness")
def test_a_prompt_of_your_own(tiny_engine: Engine) -> None:
    pcm = bursts(1.0)
    (segment,) = tiny_engine.transcribe(
        pcm, sample_rate=16000, prompt="Who speaks?", generation=VARIED, config=cut_at()
    )[0]
    alone = tiny_engine.generate(pcm[slice(*segment.window)], sample_rate=16000, prompt="Who speaks?", config=VARIED)
    assert segment.token_ids == alone.token_ids


def sentences(count: int, seed: int) -> tuple[F32, str]:
    """Demo recordings in random order, with pauses of 0.3 to 2 s and faint noise; what they say."""
    rng = np.random.default_rng(seed)
    parts, texts = [], []
    for entry in rng.choice(np.array(SPOKEN, object), count):
        parts += [silence(rng.uniform(0.3, 2)), soundfile.read(RECORDINGS / entry["path"], dtype="float32")[0]]
        texts.append(entry["text"])
    pcm = np.concatenate(parts)
    return (pcm + rng.normal(0, 0.0005, len(pcm))).astype(np.float32), " ".join(texts)


@pytest.mark.parametrize("vad", ["silero", "energy"])
def test_two_minutes_of_sentences(demo_engine: Engine, tmp_path: Path, vad: str) -> None:
    pcm, text = sentences(30, seed=0)
    assert len(pcm) > 100 * 16000
    path = tmp_path / "long.wav"
    soundfile.write(path, pcm, 16000, subtype="FLOAT")
    segments, info = demo_engine.transcribe(path, config=cut_at(vad=vad))
    taken = list(segments)
    assert jiwer.wer(text, " ".join(segment.text for segment in taken)) <= 0.15
    assert info.vad == vad
    for segment in taken[:10]:
        alone = demo_engine.generate(pcm[slice(*segment.window)], sample_rate=16000, task="asr")
        assert (segment.text, segment.token_ids) == (alone.text, alone.token_ids)


# The books


@pytest.mark.usefixtures("loudness")
def test_samples_are_accounted_for(tiny_engine: Engine) -> None:
    pcm = bursts(1.0, 2.0, 0.5)
    segments, info = tiny_engine.transcribe(pcm, sample_rate=16000, generation=VARIED, config=cut_at())
    assert (info.sample_rate, info.channels, info.vad) == (16000, 1, "loudness")
    assert (info.duration_s, info.finished) == (len(pcm) / 16000, False)
    taken = list(segments)
    heard = sum(segment.end_sample - segment.start_sample for segment in taken)
    assert info.heard_samples == len(pcm) == heard + info.dropped_samples
    assert [(segment.start, segment.end) for segment in taken] == [
        (segment.start_sample / 16000, segment.end_sample / 16000) for segment in taken
    ]
    assert abs(taken[1].start - (3.0 - 0.5)) <= VAD_HOP / 16000
    assert abs(taken[1].end - (5.0 + 0.25)) <= VAD_HOP / 16000
    assert info.finished
    assert info.notes == [f"{info.dropped_s:.1f} s of silence dropped (vad loudness)"]


def test_no_speech(tiny_engine: Engine) -> None:
    segments, info = tiny_engine.transcribe(silence(60), sample_rate=16000, config=cut_at(vad="energy"))
    assert list(segments) == []
    assert info.notes == ["no speech in 60.0 s (vad energy)"]
    assert info.dropped_s == 60.0


@pytest.mark.usefixtures("loudness")
def test_what_was_done_to_the_audio_is_noted(tiny_engine: Engine, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([bursts(1.0)] * 2, axis=1), 8000)
    segments, info = tiny_engine.transcribe(tmp_path / "a.wav", generation=VARIED, config=cut_at())
    assert info.notes == ["channel 0 of 2 is used", "8000 Hz resampled to 16000 Hz"]
    assert info.duration_s == 6.0
    (segment,) = segments
    assert segment.start == pytest.approx(2.0 - 0.5, abs=2 * VAD_HOP / 16000)


@pytest.mark.usefixtures("loudness")
def test_windows_are_no_longer_than_the_model_hears(tiny_engine: Engine) -> None:
    options = cut_at(window_s=100)
    segments, info = tiny_engine.transcribe(noise(40), sample_rate=16000, generation=VARIED, config=options)
    assert info.config == replace(options, window_s=30.0)
    assert info.notes == ["windows of 30 s, which is the longest this model hears"]
    assert [segment.window for segment in segments] == [(0, 480_000), (448_000, 640_000)]


@pytest.mark.usefixtures("loudness")
def test_an_answer_that_did_not_end_is_noted(tiny_engine: Engine) -> None:
    config = GenerationConfig(max_new_tokens=3, stop_token_ids=())
    (segment,) = tiny_engine.transcribe(bursts(1.5), sample_rate=16000, generation=config, config=cut_at())[0]
    assert (segment.finish_reason, segment.notes) == ("length", ("cut after max_new_tokens=3",))


@pytest.mark.usefixtures("loudness")
def test_silence_below_the_limit_is_not_decoded(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_engine.model, "silence", lambda audio: "silence" if audio.source_s < 2.0 else "")
    first, second = tiny_engine.transcribe(bursts(1.0, 2.0), sample_rate=16000, generation=VARIED, config=cut_at())[0]
    assert (first.text, first.token_ids, first.finish_reason, first.notes) == ("", [], "stop", ("silence",))
    assert second.token_ids


# Lazily


@pytest.mark.usefixtures("loudness")
def test_ten_minutes_are_not_read_at_once(tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 16000, 1, subtype="PCM_16") as file:
        for minute in range(10):
            file.write(np.concatenate([noise(59, minute) * 0.01, noise(1, minute)]))
    read: list[int] = []
    plain = soundfile.SoundFile.read

    def watched(file: soundfile.SoundFile, frames: int = -1, **options: object) -> F32:
        samples: F32 = plain(file, frames, **options)
        read.append(len(samples))
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", watched)
    segments, info = tiny_engine.transcribe(path, generation=VARIED, config=cut_at(batch_size=2))
    assert read == []
    assert (info.duration_s, info.windows) == (600.0, 0)
    next(segments)
    assert 120 * 16000 <= sum(read) <= 122 * 16000  # as far as the second window's pause
    assert len(list(segments)) == 9
    assert sum(read) == 600 * 16000
    assert max(read) == 16000


@pytest.mark.usefixtures("loudness")
def test_bad_samples_are_refused_when_they_are_read(tiny_engine: Engine) -> None:
    pcm = bursts(1.0, 1.0)
    pcm[-100] = np.inf
    one_by_one = cut_at(batch_size=1)
    segments, _ = tiny_engine.transcribe(pcm, sample_rate=16000, generation=VARIED, config=one_by_one)
    next(segments)
    with pytest.raises(AudioError, match=f"sample {len(pcm) - 100} is inf"):
        next(segments)


def test_bad_arguments_are_refused_at_once(tiny_engine: Engine) -> None:
    pcm = bursts(1.0)
    with pytest.raises(AudioError, match="an array needs sample_rate"):
        tiny_engine.transcribe(pcm)
    with pytest.raises(PromptError, match="unknown task 'sing'"):
        tiny_engine.transcribe(pcm, sample_rate=16000, task="sing")
    with pytest.raises(CapacityError, match="positions"):
        tiny_engine.transcribe(
            pcm, sample_rate=16000, generation=GenerationConfig(max_new_tokens=10**6), config=cut_at()
        )


# Cancelling


@pytest.mark.usefixtures("loudness")
def test_cancelled_between_batches(tiny_engine: Engine) -> None:
    cancel = threading.Event()
    options = cut_at(batch_size=1)
    segments, info = tiny_engine.transcribe(
        bursts(1.0, 1.0, 1.0), sample_rate=16000, generation=VARIED, config=options, cancel=cancel
    )
    next(segments)
    cancel.set()
    assert list(segments) == []
    assert not info.finished
    assert info.notes == ["cancelled: not all of the recording was transcribed"]


class LateCancel(threading.Event):
    """Set when it has been asked `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def is_set(self) -> bool:
        self.times -= 1
        return self.times < 0


@pytest.mark.usefixtures("loudness")
@pytest.mark.parametrize("config", [VARIED, replace(VARIED, num_beams=2)], ids=["greedy", "beams"])
@pytest.mark.parametrize("times", [0, 3, 6, 7, 8, 9, 10, 12, 20, 30])
def test_cancelled_anywhere(tiny_engine: Engine, times: int, config: GenerationConfig) -> None:
    pcm = bursts(1.0, 1.5)
    complete = list(tiny_engine.transcribe(pcm, sample_rate=16000, generation=config, config=cut_at())[0])
    segments, info = tiny_engine.transcribe(
        pcm, sample_rate=16000, generation=config, cancel=LateCancel(times), config=cut_at()
    )
    taken = list(segments)
    assert info.finished == (taken == complete)
    for segment, whole in zip(taken, complete, strict=False):
        assert segment.token_ids
        if config.num_beams == 1:
            assert segment.token_ids == whole.token_ids[: len(segment.token_ids)]
        assert segment.finish_reason == (whole.finish_reason if segment.token_ids == whole.token_ids else "cancelled")
    if not info.finished:
        assert info.notes == ["cancelled: not all of the recording was transcribed"]


@pytest.mark.usefixtures("loudness")
def test_nothing_is_encoded_after_cancelling(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = threading.Event()
    encoded = []
    plain = tiny_engine.model.encoder.encode

    def encode(audio: Audio, *_: object) -> F32:
        encoded.append(audio)
        cancel.set()
        return plain(audio)

    monkeypatch.setattr(tiny_engine.model.encoder, "encode", encode)
    arguments = {"sample_rate": 16000, "generation": VARIED, "cancel": cancel, "config": cut_at()}
    segments, info = tiny_engine.transcribe(bursts(1.0, 1.0, 1.0), **arguments)  # type: ignore[arg-type]
    assert (list(segments), len(encoded), info.finished) == ([], 1, False)


# Speech without a pause

TOKEN_SAMPLES = 8000  # in these tests a word lasts half a second
THRESHOLD = -1.0


def scored(tokens: list[int]) -> Hypothesis:
    return Hypothesis(tokens, "stop", [-2.5 if token >= 1000 else -0.5 for token in tokens])


class Listener:
    """Hears words that are numbered from the beginning of the recording, whole ones only; spoils what it hears."""

    request = Request(PromptIds((), ()), GenerationConfig(max_new_tokens=100), StopRules(frozenset({-1})))
    terms = WHENEVER

    def __init__(self, spoil: Callable[[list[int]], list[int]]) -> None:
        tokenizer = SimpleNamespace(decode=self.text)
        manifest = SimpleNamespace(audio=SimpleNamespace(max_s=30.0), prompt=None)
        self.model = SimpleNamespace(
            tokenizer=tokenizer,
            bundle=SimpleNamespace(manifest=manifest),
            check_capacity=lambda request, samples: None,
            heard_nothing=lambda text: text == " 404",
            low_confidence=lambda score: score < THRESHOLD,
            rejection=lambda score: "rejected" * (score < THRESHOLD),
            threshold=lambda: SimpleNamespace(score=THRESHOLD),
        )
        self._spoil = spoil

    def answer(self, windows: Sequence[Window]) -> list[WindowAnswer]:
        words = [list(range(-(-window.start // TOKEN_SAMPLES), window.end // TOKEN_SAMPLES)) for window in windows]
        return [
            WindowAnswer(window, scored([*self._spoil(heard), -1]), ())
            for window, heard in zip(windows, words, strict=True)
        ]

    def text(self, token_ids: Sequence[int]) -> str:
        return "".join(f" {token}" for token in token_ids if token >= 0)


def listen(spoil: Callable[[list[int]], list[int]], options: TranscribeConfig) -> tuple[list[Segment], TranscriptInfo]:
    reader = PcmReader(noise(60), 16000)
    segments, info = transcribe(reader, Listener(spoil), options)  # type: ignore[arg-type]
    return list(segments), info


@pytest.mark.usefixtures("loudness")
@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize(
    "spoil",
    [lambda words: words, lambda words: [500, *words[1:-1], 600]],
    ids=["clean", "spoiled at the edges"],
)
def test_overlapping_windows_are_stitched(batch_size: int, spoil: Callable[[list[int]], list[int]]) -> None:
    options = cut_at(window_s=10.7, overlap_s=4, batch_size=batch_size)
    segments, info = listen(spoil, options)
    words = [token for segment in segments for token in segment.token_ids if token >= 0]
    assert words == spoil(list(range(120)))
    assert [token for segment in segments for token in map(int, segment.text.split())] == words
    assert all(segment.text == segment.text.lstrip() for segment in segments[1:])
    assert [segment.token_ids[-1] for segment in segments][-1] == -1
    assert all(-1 not in segment.token_ids for segment in segments[:-1])
    assert not any(segment.notes for segment in segments)
    assert info.windows == len(segments) > 5
    assert info.dropped_samples == 0
    for before, after in pairwise(segments):
        assert before.window[1] - after.window[0] == 4 * 16000
        assert before.end_sample == after.start_sample == after.window[0] + 2 * 16000


@pytest.mark.usefixtures("loudness")
def test_both_texts_are_kept_where_nothing_matches() -> None:
    calls = iter(range(1000, 10**6, 1000))

    def other_words(words: list[int]) -> list[int]:
        first = next(calls)
        return [first + word for word in words]

    segments, _ = listen(other_words, cut_at(window_s=20, overlap_s=2))
    assert [len(segment.token_ids) for segment in segments] == [41, 41, 41, 13]
    assert [segment.notes for segment in segments] == [
        (),
        *((f"not aligned with the segment before: {at}.00 to {at + 2}.00 s may be said twice",) for at in (18, 36, 54)),
    ]
    assert segments[0].end == segments[1].start == 19.0


@pytest.mark.usefixtures("loudness")
def test_endless_repetition_is_noted() -> None:
    segments, _ = listen(lambda words: [7] * 40, cut_at())
    assert all(segment.notes == ("degenerate: 1 token repeated 8 times or more",) for segment in segments)


@pytest.mark.usefixtures("loudness")
def test_windows_in_which_nothing_is_heard_are_dropped_and_counted() -> None:
    """Of four windows that overlap by 2 s; the neighbours of the one that is dropped keep all that they say of it."""
    segments, info = listen(lambda words: [404] if 40 in words and 0 not in words else words, cut_at(overlap_s=2))
    assert info.windows == 4
    assert [segment.token_ids[0] for segment in segments] == [0, 72, 110]  # the last two meet amid what both have
    assert segments[0].token_ids[-2:] == [39, -1]
    assert (info.nothing, info.rejected) == (1, 0)
    spoken = sum(segment.end_sample - segment.start_sample for segment in segments)
    assert spoken + info.nothing_samples + info.dropped_samples == info.heard_samples
    assert info.notes[-1] == "18.0 s dropped, no speech: the model heard nothing to transcribe"


@pytest.mark.usefixtures("loudness")
@pytest.mark.parametrize("reject", [True, False])
def test_segments_below_the_threshold_are_rejected_where_it_is_asked_for(reject: bool) -> None:
    def hardly(words: list[int]) -> list[int]:
        return [1000 + word for word in words] if 40 in words and 0 not in words else words

    segments, info = listen(hardly, cut_at(overlap_s=2, reject=reject))
    assert [segment.low_confidence for segment in segments] == ([False] * 3 if reject else [False, True, False, False])
    assert (info.rejected, info.nothing) == (int(reject), 0)
    assert ("18.0 s rejected: 1 answers of a score below -1.00" in info.notes) == reject


@pytest.mark.usefixtures("loudness")
def test_silence_about_an_overlap_is_no_mismatch() -> None:
    segments, _ = listen(lambda words: [], cut_at())
    assert not any(segment.text or segment.notes for segment in segments)
