"""Streams that are asked, cancelled, closed and too slow, and what is refused."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from salmonrun.runtime import EndpointConfig, Engine, GenerationConfig, Stream, StreamConfig, Update
from salmonrun.runtime.errors import AudioError, CapacityError, ClosedError, ConfigError, PromptError
from salmonrun.runtime.prompt import PromptIds
from salmonrun.runtime.streaming import clock
from salmonrun.runtime.streaming import stream as stream_module
from salmonrun.runtime.vad import VAD_HOP, load_vad
from salmonrun.training.model.salmonn import SalmonnModel
from tests.helpers.answers import answer
from tests.helpers.streams import (
    AGREEMENT,
    AT_THE_END_ONLY,
    BLOCK,
    BLOCKS,
    ENDPOINT,
    VARIED,
    before_steps,
    facts,
    hear,
    noise,
    without_stop,
)

EITHER_POLICY = pytest.mark.parametrize("config", [AGREEMENT, BLOCKS], ids=["agreement", "block"])

pytestmark = pytest.mark.filterwarnings("ignore:Passing .* with `inputs_embeds`:UserWarning")


# Asking in between


@pytest.mark.parametrize("prompt", ["Who speaks?", "Listen: <Speech><SpeechHere></Speech> Who is it?"])
@EITHER_POLICY
def test_asking_disturbs_nothing_and_is_answered_as_of_a_recording(
    streaming_engine: Engine, streaming_model: SalmonnModel, config: StreamConfig, prompt: str
) -> None:
    """Whether or not the KV of what comes before the audio can be shared."""
    pcm = noise(41_111)
    parts = np.split(pcm, [100, 5000, 12_345, 12_346, 30_000])
    expected = hear(streaming_engine, parts, config)
    block = BLOCK if config.policy == "block" else None
    updates: list[Update] = []
    heard = 0
    with streaming_engine.stream(config=config, generation=VARIED) as stream:
        for part in parts:
            updates += map(facts, stream.push(part))
            heard += len(part)
            if heard >= VAD_HOP:
                said = stream.ask(prompt, config=VARIED)
                whole = streaming_model.generate(
                    pcm[:heard], sample_rate=16000, prompt=prompt, config=VARIED, block=block
                )
                assert without_stop(said.token_ids) == without_stop(whole)
        assert (updates, answer(stream.finish()), stream.segments) == expected


@EITHER_POLICY
def test_asking_by_any_search(streaming_engine: Engine, config: StreamConfig) -> None:
    pcm = noise(20_000)
    with streaming_engine.stream(config=config) as stream:
        stream.push(pcm)
        beams = stream.ask(task="qa", question="Who?", config=replace(VARIED, num_beams=3))
        sampled = GenerationConfig(max_new_tokens=9, do_sample=True, seed=3)
        assert stream.ask("Who?", config=sampled).token_ids == stream.ask("Who?", config=sampled).token_ids
        with pytest.raises(PromptError):
            stream.ask("Who?", task="asr")
        with pytest.raises(PromptError):
            stream.ask(task="translate")
    if config.policy == "agreement":
        whole = streaming_engine.generate(
            pcm, sample_rate=16000, task="qa", question="Who?", config=replace(VARIED, num_beams=3)
        )
        assert beams.token_ids == whole.token_ids


def test_between_utterances_the_last_one_is_asked_about(streaming_engine: Engine, script: Callable[..., None]) -> None:
    script(5, 20, 60)
    pcm = noise(60 * VAD_HOP)
    with streaming_engine.stream(config=replace(BLOCKS, endpoint=ENDPOINT)) as stream:
        stream.push(pcm[: 3 * VAD_HOP])
        with pytest.raises(AudioError, match=r"no speech has been heard yet \(vad scripted\)"):
            stream.ask("Who?")
        stream.push(pcm[3 * VAD_HOP :])
        (segment,) = stream.segments
        said = stream.ask("Who?", config=VARIED)
    whole = streaming_engine.generate(pcm[slice(*segment.window)], sample_rate=16000, prompt="Who?", config=VARIED)
    assert said.token_ids == whole.token_ids


# Cancelling and closing


def released(stream: Stream) -> bool:
    return stream._lease.closed


def test_cancelled_before_the_first_sample(streaming_engine: Engine) -> None:
    with streaming_engine.stream(config=AGREEMENT) as stream:
        stream.cancel()
        assert released(stream)
        assert stream.push(noise(20_000)) == []
        assert answer(stream.finish()) == ("", [], "cancelled", ())


@EITHER_POLICY
def test_cancelled_between_pushes(streaming_engine: Engine, config: StreamConfig) -> None:
    """What is stable stays."""
    pcm = noise(40_000)
    with streaming_engine.stream(config=config, generation=VARIED) as stream:
        last = stream.push(pcm[:25_000])[-1]
        assert last.stable
        stream.cancel()
        assert released(stream)
        assert stream.push(pcm[25_000:]) == []
        with pytest.raises(ClosedError):
            stream.ask("Who?")
        result = stream.finish()
    assert result.text == last.stable
    assert result.finish_reason == "cancelled"
    assert streaming_engine.model.tokenizer.decode(result.token_ids).startswith(result.text)
    assert result.notes == ()  # nothing was left out for want of speech


@EITHER_POLICY
@pytest.mark.parametrize("elsewhere", [True, False], ids=["another thread", "within the call"])
def test_cancelled_while_a_token_is_computed(
    streaming_engine: Engine, monkeypatch: pytest.MonkeyPatch, config: StreamConfig, elsewhere: bool
) -> None:
    """No further token is; from within, as a signal's handler does it."""
    steps = itertools.count(1)

    def cancel() -> None:
        if next(steps) == 3:
            if elsewhere:
                thread = threading.Thread(target=stream.cancel)
                thread.start()
                thread.join(20)
                assert not thread.is_alive()  # it does not wait for the update
            else:
                stream.cancel()

    before_steps(monkeypatch, streaming_engine, cancel)
    with streaming_engine.stream(config=config, generation=VARIED) as stream:
        stream.push(noise(40_000))
        assert next(steps) == 4
        assert released(stream)
        assert stream.finish().finish_reason == "cancelled"


def test_cancelled_while_finishing(streaming_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with streaming_engine.stream(config=replace(AGREEMENT, update_s=9), generation=VARIED) as stream:
        stream.push(noise(20_000))
        before_steps(monkeypatch, streaming_engine, lambda: stream.cancel())
        result = stream.finish()
    assert result.finish_reason == "cancelled"
    assert 1 <= len(result.token_ids) <= 2
    assert released(stream)


def test_cancelled_from_another_thread_while_pushing(streaming_engine: Engine) -> None:
    with streaming_engine.stream(config=AGREEMENT, generation=VARIED) as stream:
        started = threading.Event()

        def push() -> int:
            count = 0
            for part in np.split(noise(3_200_000), 200):
                count += len(stream.push(part))
                started.set()
            return count

        with ThreadPoolExecutor(1) as threads:
            pushing = threads.submit(push)
            assert started.wait(60)
            stream.cancel()
            assert pushing.result() < 3_200_000 // 4800
        assert released(stream)
        assert stream.finish().finish_reason == "cancelled"


def test_cancelled_too_late(streaming_engine: Engine) -> None:
    with streaming_engine.stream(config=AGREEMENT, generation=VARIED) as stream:
        stream.push(noise(20_000))
        result = stream.finish()
        stream.cancel()
        assert stream.finish() is result
        assert result.finish_reason != "cancelled"


def test_finished(streaming_engine: Engine) -> None:
    stream = streaming_engine.stream(config=AGREEMENT, generation=VARIED)
    stream.push(noise(20_000))
    result = stream.finish()
    assert stream.finish() is result
    assert released(stream)
    for late in (lambda: stream.push(noise(10)), lambda: stream.ask("Who?")):
        with pytest.raises(ClosedError, match="this stream is finished; open another"):
            late()
    stream.close()
    assert stream.finish() is result


def test_closed(streaming_engine: Engine) -> None:
    with streaming_engine.stream(config=AGREEMENT) as stream:
        stream.push(noise(20_000))
        assert not released(stream)
    assert released(stream)
    stream.close()
    for late in (lambda: stream.push(noise(10)), lambda: stream.ask("Who?"), stream.finish):
        with pytest.raises(ClosedError, match="this stream is closed"):
            late()


def test_a_refused_piece_leaves_no_trace(streaming_engine: Engine) -> None:
    pcm = noise(30_000)
    expected = hear(streaming_engine, [pcm], AGREEMENT)
    with streaming_engine.stream(config=AGREEMENT, generation=VARIED) as stream:
        updates = stream.push(pcm[:12_345])
        with pytest.raises(AudioError, match="sample 12346 is nan"):
            stream.push(np.array([0.0, np.nan], np.float32))
        updates += stream.push(pcm[12_345:])
        assert (list(map(facts, updates)), answer(stream.finish()), stream.segments) == expected


# Falling behind


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which everything takes long."""
    ticks: Iterator[float] = itertools.count(0.0, 0.7)
    for module in (stream_module, clock):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))


@EITHER_POLICY
@pytest.mark.usefixtures("slow_clock")
def test_a_stream_that_falls_behind_leaves_updates_out(streaming_engine: Engine, config: StreamConfig) -> None:
    pcm = noise(60_000)
    config = replace(config, hypotheses=AT_THE_END_ONLY)
    all_of_them, result, _ = hear(streaming_engine, [pcm], config)
    with streaming_engine.stream(config=replace(config, max_lag_s=1.0), generation=VARIED) as stream:
        updates = stream.push(pcm)
        assert answer(stream.finish()) == result
    assert len(updates) < len(all_of_them)
    assert len(updates) + sum(update.left_out for update in updates) == len(all_of_them)
    assert updates[-1].lag_s > 1.0
    assert updates[-1].audio_s == all_of_them[-1].audio_s  # the latest is not left out
    assert [facts(update).partial for update in updates] == [
        other.partial for other in all_of_them if other.audio_s in {update.audio_s for update in updates}
    ]


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "blocks"}, "policy is 'blocks'; expected 'auto', 'agreement' or 'block'"),
        ({"update_s": 0}, "update_s is 0; it must be above 0 seconds"),
        ({"update_s": float("nan")}, "update_s is nan; expected a finite number"),
        ({"update_s": float("inf")}, "update_s is inf"),
        ({"hypotheses": 0}, "hypotheses is 0; it must be at least 1"),
        ({"hold_back": -1}, "hold_back is -1; it must be at least 0"),
        ({"policy": "agreement", "block_s": 0.32}, "block_s and lookback_s are of policy 'block'"),
        ({"policy": "agreement", "lookback_s": 0.32}, "block_s and lookback_s are of policy 'block'"),
        ({"max_lag_s": -1.0}, "max_lag_s is -1.0; it must be at least 0 seconds, or None"),
        ({"max_lag_s": float("nan")}, "max_lag_s is nan"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StreamConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_s": 0.5}, "block_s is 0.5; this bundle was trained for 0.32, 0.64"),
        ({"block_s": 0.325}, "block_s is 0.325; this bundle was trained for 0.32, 0.64"),
        ({"block_s": float("nan")}, "block_s is nan; expected a finite number or None"),
        ({"lookback_s": 9.0}, "lookback_s is 9; this bundle was trained for 0.32, 3.2"),
    ],
)
def test_blocks_it_was_not_trained_for_are_refused(
    streaming_engine: Engine, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        streaming_engine.stream(config=StreamConfig(endpoint=None, **settings))


@pytest.mark.parametrize("settings", [{"policy": "block"}, {"block_s": 0.32}, {"lookback_s": 3.2}])
def test_a_bundle_that_hears_whole_recordings_has_no_blocks(tiny_engine: Engine, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="this bundle's encoders hear whole recordings"):
        tiny_engine.stream(config=StreamConfig(endpoint=None, **settings))


def test_auto_is_block_where_the_bundle_has_it(tiny_engine: Engine, streaming_engine: Engine) -> None:
    for engine, policy in ((tiny_engine, "agreement"), (streaming_engine, "block")):
        with engine.stream(config=StreamConfig(endpoint=None)) as stream:
            assert stream.policy == policy


@pytest.mark.parametrize(
    "generation",
    [
        GenerationConfig(num_beams=2),
        GenerationConfig(do_sample=True),
        GenerationConfig(stop_strings=("x",)),
    ],
)
def test_streams_decode_greedily(streaming_engine: Engine, generation: GenerationConfig) -> None:
    with pytest.raises(ConfigError, match="a stream decodes greedily"):
        streaming_engine.stream(generation=generation)


def test_other_arguments_are_checked_at_once(streaming_engine: Engine) -> None:
    with pytest.raises(AudioError, match="sample_rate is 10"):
        streaming_engine.stream(sample_rate=10)
    with pytest.raises(PromptError):
        streaming_engine.stream(task="translate")
    with pytest.raises(PromptError):
        streaming_engine.stream(task="asr", prompt="Who?")
    with pytest.raises(CapacityError, match="positions"):
        streaming_engine.stream(generation=GenerationConfig(max_new_tokens=5000))
    with pytest.raises(ConfigError, match="vad is 'loud'"):
        streaming_engine.stream(config=StreamConfig(endpoint=EndpointConfig(vad="loud")))  # type: ignore[arg-type]


def test_a_prompt_that_ends_with_the_audio_is_refused(
    streaming_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a template with nothing behind the prompt makes it: there would be no position to answer from."""
    monkeypatch.setattr(streaming_engine.model, "_prompt_ids", lambda *text: PromptIds((256,), ()))
    with pytest.raises(PromptError, match="nothing follows the audio in this prompt"):
        streaming_engine.stream(config=AGREEMENT)


def test_real_voice_detection_opens_with_each_stream(streaming_engine: Engine) -> None:
    """The energy detector: noise that swells is speech to it, what is steady is not."""
    config = replace(AGREEMENT, endpoint=EndpointConfig(vad="energy", pause_s=0.5))
    silence = np.zeros(16_000, np.float32)
    outcomes = [hear(streaming_engine, [silence, noise(16_000), silence], config) for _ in range(2)]
    assert outcomes[0] == outcomes[1]
    (segment,) = outcomes[0][2]
    assert 7000 <= segment.start_sample <= 9000  # half a second of margin
    assert 35_000 <= segment.end_sample <= 37_000  # 0.2 s, half a pause, behind what the detector hears to its end
    assert load_vad("energy").name == "energy"
