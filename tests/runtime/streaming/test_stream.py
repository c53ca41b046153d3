"""Streams on a tiny model: against the engine and PyTorch on whole recordings, and what is kept in the books."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from runtime import EndpointConfig, Engine, GenerationConfig, Stream, StreamConfig
from runtime import engine as engine_module
from runtime.audio import F32
from runtime.config import Block
from runtime.errors import AudioError, CapacityError, ClosedError, ConfigError, PromptError
from runtime.prompt import PromptIds, prompt_ids
from runtime.search import decode_drafted
from runtime.streaming import stream as module
from runtime.streaming import utterance as utterance_module
from runtime.streaming.agreement import LocalAgreement
from runtime.streaming.block_encoder import LOOK_AHEAD
from runtime.streaming.vad import VAD_HOP, load_vad
from tests.streams import VARIED, answer, facts, hear, noise, pieces, scripted
from training.model import SalmonnModel

WINDOW = 64_000  # samples the model hears at once
BLOCK = Block(16, 160)  # what the bundle prefers
PLAIN = GenerationConfig(max_new_tokens=12)
AT_THE_END_ONLY = 99  # hypotheses, more than a stream has: nothing is stable before the end
HOP_S = VAD_HOP / 16000
# In hops: rule 1 after 20, rule 2 after 10, rule 3 from 50 on; 3 of margin.
ENDPOINT = EndpointConfig(silence_s=20 * HOP_S, pause_s=10 * HOP_S, longest_s=50 * HOP_S, margin_s=3 * HOP_S)
# A random model's hypotheses hardly ever agree: here each one is believed, but for its last six tokens.
AGREEMENT = StreamConfig(policy="agreement", update_s=0.3, hypotheses=1, hold_back=6, endpoint=None)
BLOCKS = replace(AGREEMENT, policy="block")
EITHER_POLICY = pytest.mark.parametrize("config", [AGREEMENT, BLOCKS], ids=["agreement", "block"])
WITH_AND_WITHOUT_ENDPOINTS = pytest.mark.parametrize("endpoint", [None, ENDPOINT], ids=["endless", "endpoints"])

pytestmark = pytest.mark.filterwarnings("ignore:Passing .* with `inputs_embeds`:UserWarning")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have voice detection follow a script: so many hops of silence, then of speech, and so on."""
    return lambda *hops: monkeypatch.setattr(engine_module, "load_vad", lambda kind: scripted(*hops))


def patch(monkeypatch: pytest.MonkeyPatch, engine: Engine, name: str, before: Callable[[], None]) -> None:
    """Have something happen before each call of one of the decoder's methods."""
    original = getattr(engine.decoder, name)

    def patched(*args: Any) -> Any:
        before()
        return original(*args)

    monkeypatch.setattr(engine.decoder, name, patched)


# However the PCM is cut


@EITHER_POLICY
@WITH_AND_WITHOUT_ENDPOINTS
@pytest.mark.parametrize("rate", [16000, 8000, 44100])
def test_however_it_is_cut(
    streaming_engine: Engine,
    script: Callable[..., None],
    config: StreamConfig,
    endpoint: EndpointConfig | None,
    rate: int,
) -> None:
    script(5, 30, 15, 20, 2, 25, 30, 1)
    config = replace(config, endpoint=endpoint)
    pcm = noise(int(4.3 * rate))
    expected = hear(streaming_engine, [pcm], config, sample_rate=rate)
    assert len(expected[0]) > 5
    assert any(update.stable for update in expected[0][:-1])
    rng = np.random.default_rng(0)
    for longest in (100, 5000, 40_000):
        assert hear(streaming_engine, pieces(pcm, rng, longest), config, sample_rate=rate) == expected
    stored = (pcm * 32768).astype(np.int16)
    assert hear(streaming_engine, pieces(stored, rng, 9000), config, sample_rate=rate) == expected


@EITHER_POLICY
def test_sample_by_sample(streaming_engine: Engine, script: Callable[..., None], config: StreamConfig) -> None:
    script(3, 15, 12, 1)
    config = replace(config, endpoint=ENDPOINT)
    pcm = noise(20_000)
    expected = hear(streaming_engine, [pcm], config)
    assert expected[2]
    assert hear(streaming_engine, pcm.reshape(-1, 1), config) == expected


# Against whole recordings


@pytest.mark.parametrize("samples", [1, 4000, 30_011, WINDOW - 1, WINDOW])
def test_agreement_says_what_generate_says(streaming_engine: Engine, samples: int) -> None:
    """Every update, and the end, about the audio until then."""
    pcm = noise(samples)
    updates, (text, tokens, _, _), _ = hear(streaming_engine, [pcm], replace(AGREEMENT, hypotheses=AT_THE_END_ONLY))
    updates = [update for update in updates if not update.segment]
    assert len(updates) == (samples // VAD_HOP * VAD_HOP) // 4800
    for update in updates:
        heard = pcm[: round(update.audio_s * 16000)]
        alone = streaming_engine.generate(heard, sample_rate=16000, task="asr", config=VARIED)
        assert (update.stable, update.delta, update.partial) == ("", "", alone.text)
    whole = streaming_engine.generate(pcm, sample_rate=16000, task="asr", config=VARIED)
    assert (text, tokens) == (whole.text, without_stop(whole.token_ids))


@pytest.mark.parametrize("block", [Block(16, 16), BLOCK, Block(32, 160)], ids=str)
@pytest.mark.parametrize("samples", [1, 4000, 30_011, WINDOW])
def test_blocks_say_what_pytorch_says_of_the_blocks_so_far(
    streaming_engine: Engine, streaming_model: SalmonnModel, block: Block, samples: int
) -> None:
    pcm = noise(samples)
    config = replace(
        BLOCKS, hypotheses=AT_THE_END_ONLY, update_s=0.5, block_s=block.size / 50, lookback_s=block.lookback / 50
    )
    updates, (text, tokens, _, _), _ = hear(streaming_engine, [pcm], config)
    updates = [update for update in updates if not update.segment]
    with torch.inference_mode():
        embeds = streaming_model.encode(streaming_model.load_audio(pcm, 16000), block)
    prompt = streaming_model.prompts.tasks["asr"][0]
    for count, update in enumerate(updates, 1):
        assert LOOK_AHEAD <= update.audio_s * 16000 - count * 32 * 320 < LOOK_AHEAD + VAD_HOP
        known = streaming_model.embed_prompt(embeds[:, : count * 4], prompt)  # two to a window of 16 frames
        expected = without_stop(streaming_model.generate_from(known, VARIED))
        assert update.partial == streaming_model.tokenizer.decode(expected)
    assert len(updates) == max(0, (samples // VAD_HOP * VAD_HOP - LOOK_AHEAD) // (32 * 320))
    whole = streaming_model.generate(pcm, task="asr", sample_rate=16000, config=VARIED, block=block)
    assert tokens == without_stop(whole)
    assert text == streaming_model.tokenizer.decode(tokens)


@pytest.mark.parametrize(("hypotheses", "hold_back"), [(1, 11), (1, 0), (2, 0), (2, 2)])
def test_an_answer_goes_on_from_what_is_stable(
    streaming_engine: Engine, streaming_model: SalmonnModel, hypotheses: int, hold_back: int
) -> None:
    """PyTorch answers anew at every update, with the stable tokens behind the prompt."""
    pcm = noise(50_000, seed=4)
    config = replace(BLOCKS, hypotheses=hypotheses, hold_back=hold_back)
    updates, (text, tokens, _, _), _ = hear(streaming_engine, [pcm], config, PLAIN)
    ids = prompt_ids(streaming_model.prompts, streaming_model.tokenizer, streaming_model.prompts.tasks["asr"][0])
    decode = streaming_model.tokenizer.decode
    agreement = LocalAgreement(hypotheses, hold_back)
    with torch.inference_mode():
        embeds = streaming_model.encode(streaming_model.load_audio(pcm, 16000), BLOCK)

    def hypothesis(count: int) -> list[int]:
        certain = agreement.certain
        if len(certain) == PLAIN.max_new_tokens:
            return list(certain)
        known = streaming_model.wrap(embeds[:, :count], ids, certain)[None]
        rest = streaming_model.generate_from(known, replace(PLAIN, max_new_tokens=12 - len(certain)))
        return [*certain, *without_stop(rest)]

    for count, update in enumerate(updates, 1):
        expected = hypothesis(2 * count)
        agreement.add(expected)
        assert update.stable + update.partial == decode(expected)
        assert decode(agreement.certain).startswith(update.stable)
        assert len(decode(agreement.certain)) - len(update.stable) <= 4  # bytes of a character that is not complete
    assert tokens == hypothesis(embeds.shape[1])
    assert text == decode(tokens)


def without_stop(tokens: list[int]) -> list[int]:
    return tokens[:-1] if tokens[-1] == 257 else tokens


@EITHER_POLICY
def test_a_draft_that_is_right_costs_one_pass(
    streaming_engine: Engine, monkeypatch: pytest.MonkeyPatch, config: StreamConfig
) -> None:
    """The same answer from any draft; from the right one without a step."""
    calls: list[str] = []
    patch(monkeypatch, streaming_engine, "verify", lambda: calls.append("verify"))
    patch(monkeypatch, streaming_engine, "step", lambda: calls.append("step"))
    pcm = noise(20_000)
    expected = hear(streaming_engine, [pcm], replace(config, hypotheses=AT_THE_END_ONLY))
    assert calls.count("step") > 0
    right = expected[1][1]
    calls.clear()
    drafts = iter([right, right, right])

    def drafted(decoder: Any, slot: Any, context: Any, said: Any, draft: Any, *rest: Any) -> Any:
        return decode_drafted(decoder, slot, context, said, next(drafts), *rest)

    monkeypatch.setattr(utterance_module, "decode_drafted", drafted)
    with streaming_engine.stream(config=replace(config, update_s=9.0), generation=VARIED) as stream:
        stream.push(pcm)
        assert answer(stream.finish())[:2] == expected[1][:2]
    assert calls == ["verify"]


# What updates and segments keep in their books


@EITHER_POLICY
@pytest.mark.parametrize("seed", range(3))
def test_the_books(streaming_engine: Engine, script: Callable[..., None], config: StreamConfig, seed: int) -> None:
    rng = np.random.default_rng(seed)
    script(*rng.integers(1, 40, 40).tolist())
    pcm = noise(int(rng.integers(200_000, 260_000)), seed)
    updates, (text, tokens, _, notes), segments = hear(
        streaming_engine, pieces(pcm, rng, 20_000), replace(config, endpoint=ENDPOINT)
    )
    assert len(segments) >= 4
    stable = ""
    for update in updates:
        stable += update.delta
        assert update.stable == stable
        assert update.audio_s * 16000 % VAD_HOP == 0
        assert update.left_out == 0
        done = [segment for segment in segments if segment.end_sample <= update.audio_s * 16000]
        lines = "\n".join(segment.text for segment in done if segment.text)
        if update.segment:
            assert (update.partial, update.stable) == ("", lines)
    assert all(before.audio_s < after.audio_s for before, after in pairwise(updates))
    assert text.startswith(stable)
    assert text == "\n".join(segment.text for segment in segments if segment.text)
    assert tokens == [token for segment in segments for token in segment.token_ids]
    ended = [update.segment for update in updates if update.segment]
    assert ended == list(segments[: len(ended)])
    assert len(segments) - len(ended) <= 1  # the one that `finish` ends
    for segment in segments:
        assert 0 <= segment.start_sample < segment.end_sample <= len(pcm)
        assert segment.window == (segment.start_sample, segment.end_sample)
        assert segment.end_sample - segment.start_sample <= WINDOW
    assert all(before.end_sample <= after.start_sample for before, after in pairwise(segments))
    dropped = len(pcm) - sum(segment.end_sample - segment.start_sample for segment in segments)
    assert f"{dropped / 16000:.1f} s without speech (vad scripted) were not decoded" in notes


def test_each_utterance_is_answered_as_alone(streaming_engine: Engine, script: Callable[..., None]) -> None:
    script(4, 30, 20, 25, 60)
    pcm = noise(60_000)
    config = replace(AGREEMENT, endpoint=ENDPOINT, hypotheses=AT_THE_END_ONLY)
    _, _, segments = hear(streaming_engine, [pcm], config)
    assert len(segments) == 2
    for segment in segments:
        heard = pcm[slice(*segment.window)]
        alone = streaming_engine.generate(heard, sample_rate=16000, task="asr", config=VARIED)
        assert (segment.text, segment.finish_reason) == (alone.text, alone.finish_reason)


# Where utterances end


def bounds(
    engine: Engine, hops: int, config: StreamConfig = AGREEMENT, generation: GenerationConfig = VARIED
) -> tuple[list[tuple[float, float]], list[float]]:
    """Segments in hops, and after how many hops they ended."""
    updates, _, segments = hear(engine, [noise(hops * VAD_HOP)], replace(config, endpoint=ENDPOINT), generation)
    ended = [round(update.audio_s * 16000) / VAD_HOP for update in updates if update.segment]
    return [(segment.start_sample / VAD_HOP, segment.end_sample / VAD_HOP) for segment in segments], ended


def test_rule_1_nothing_was_understood(streaming_engine: Engine, script: Callable[..., None]) -> None:
    script(5, 20, 60)
    mute = GenerationConfig(stop_token_ids=tuple(range(258)))
    assert bounds(streaming_engine, 80, generation=mute) == ([(2, 28)], [45])


@EITHER_POLICY
def test_rule_2_a_pause(streaming_engine: Engine, script: Callable[..., None], config: StreamConfig) -> None:
    """From the margin before the first speech to the margin behind the last, or to what a block has encoded."""
    script(5, 20, 60)
    assert bounds(streaming_engine, 80, config) == ([(2, 33 if config.policy == "block" else 28)], [35])
    script(5, 10, 9, 18, 60)
    assert bounds(streaming_engine, 80, config) == ([(2, 45)], [52])


def test_rule_3_the_utterance_is_long(streaming_engine: Engine, script: Callable[..., None]) -> None:
    """It ends at the first short pause, of four hops, behind 50 hops; the pause before that was too early."""
    script(0, 30, 4, 30, 3, 20, 4, 20)
    assert bounds(streaming_engine, 111, AGREEMENT) == ([(0, 90), (90, 111)], [91])


def test_speech_right_behind_an_utterance_has_its_margin(streaming_engine: Engine, script: Callable[..., None]) -> None:
    """Silence that was heard as the utterance's is the margin in front of the next one."""
    script(5, 20, 10, 20, 60)
    assert bounds(streaming_engine, 80) == ([(2, 28), (32, 58)], [35, 65])


@EITHER_POLICY
def test_a_full_window_is_cut_and_nothing_is_lost(
    streaming_engine: Engine, streaming_model: SalmonnModel, config: StreamConfig
) -> None:
    pcm = noise(2 * WINDOW + 20_011)
    config = replace(config, update_s=1.3, hypotheses=AT_THE_END_ONLY)
    _, (_, _, _, notes), segments = hear(streaming_engine, [pcm], config)
    assert [s.window for s in segments] == [(0, WINDOW), (WINDOW, 2 * WINDOW), (2 * WINDOW, len(pcm))]
    cut = "cut at 4.00 s, the longest this model hears at once"
    assert notes == (f"0.00 s: {cut}", f"4.00 s: {cut}")
    block = BLOCK if config.policy == "block" else None
    for segment in segments:
        heard = pcm[slice(*segment.window)]
        expected = streaming_model.generate(heard, sample_rate=16000, task="asr", config=VARIED, block=block)
        assert segment.token_ids == without_stop(expected)


def test_what_is_cut_while_there_is_speech_goes_on(streaming_engine: Engine, script: Callable[..., None]) -> None:
    """The hop behind the cut begins the next utterance."""
    script(5, 200, 40)
    config = replace(AGREEMENT, update_s=1.3, endpoint=replace(ENDPOINT, longest_s=30.0))
    _, (_, _, _, notes), segments = hear(streaming_engine, [noise(240 * VAD_HOP)], config)
    assert [(s.start_sample / VAD_HOP, s.end_sample / VAD_HOP) for s in segments] == [(2, 127), (127, 208)]
    assert "0.06 s: cut at 4.00 s, the longest this model hears at once" in notes


def test_a_pause_in_the_last_hop_of_the_window_is_no_cut(streaming_engine: Engine, script: Callable[..., None]) -> None:
    script(0, 115, 60)
    config = replace(AGREEMENT, update_s=1.3, endpoint=replace(ENDPOINT, longest_s=30.0))
    _, (_, _, _, notes), segments = hear(streaming_engine, [noise(140 * VAD_HOP)], config)
    assert [(s.start_sample / VAD_HOP, s.end_sample / VAD_HOP) for s in segments] == [(0, 118)]
    assert not any("cut" in note for note in notes)


def test_a_margin_longer_than_the_window_is_refused(streaming_engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"endpoint.margin_s is 4"):
        streaming_engine.stream(config=StreamConfig(endpoint=EndpointConfig(margin_s=4.0, vad="energy")))


# Updates


@EITHER_POLICY
def test_updates_keep_their_distance(
    streaming_engine: Engine, script: Callable[..., None], config: StreamConfig
) -> None:
    """Also where an utterance begins with more audio than an update's worth."""
    script(20, 60, 40)
    config = replace(config, update_s=0.1, endpoint=replace(ENDPOINT, margin_s=0.5))
    updates, _, _ = hear(streaming_engine, [noise(100 * VAD_HOP)], config)
    distances = [after.audio_s - before.audio_s for before, after in pairwise(updates[1:-1])]
    assert len(distances) > 3
    assert min(distances) >= (0.32 if config.policy == "block" else 0.1) - HOP_S


@EITHER_POLICY
@pytest.mark.parametrize("update_s", [1e-9, 1e-3])
def test_updates_come_at_most_with_every_hop_or_block(
    streaming_engine: Engine, config: StreamConfig, update_s: float
) -> None:
    updates, _, _ = hear(streaming_engine, [noise(12_000)], replace(config, update_s=update_s))
    assert len(updates) == (2 if config.policy == "block" else 12_000 // VAD_HOP)


def test_silence_brings_no_updates(streaming_engine: Engine, script: Callable[..., None]) -> None:
    script(0, 20, 80)
    patient = replace(AGREEMENT, endpoint=replace(ENDPOINT, pause_s=3.0, silence_s=3.0, longest_s=9.0))
    updates, _, _ = hear(streaming_engine, [noise(80 * VAD_HOP)], patient)
    assert [round(update.audio_s / HOP_S) for update in updates] == [10, 19, 29]  # the last has heard speech, too


# Nothing to decode


def test_no_speech_is_no_text_and_says_so(streaming_engine: Engine, script: Callable[..., None]) -> None:
    script(200, 1)
    updates, result, segments = hear(streaming_engine, [noise(51_200)], replace(AGREEMENT, endpoint=ENDPOINT))
    assert (updates, segments) == ([], ())
    assert result == ("", [], "stop", ("no speech in 3.2 s (vad scripted), so nothing was decoded",))


@EITHER_POLICY
def test_digital_silence_is_no_text_and_says_so(streaming_engine: Engine, config: StreamConfig) -> None:
    updates, (text, tokens, reason, notes), _ = hear(streaming_engine, [np.zeros(20_000, np.float32)], config)
    assert {(update.stable, update.partial) for update in updates} == {("", "")}
    assert (text, tokens, reason) == ("", [], "stop")
    assert notes == ("0.00 s: silence: the peak is -inf dBFS, below -80 dBFS, so nothing was decoded",)


@EITHER_POLICY
def test_a_loud_end_after_silence(
    streaming_engine: Engine, streaming_model: SalmonnModel, config: StreamConfig
) -> None:
    """Updates in silence leave nothing behind."""
    pcm = np.concatenate([np.zeros(20_000, np.float32), noise(20_000)])
    _, (_, tokens, _, _), _ = hear(streaming_engine, [pcm], replace(config, hypotheses=AT_THE_END_ONLY))
    block = BLOCK if config.policy == "block" else None
    expected = streaming_model.generate(pcm, sample_rate=16000, task="asr", config=VARIED, block=block)
    assert tokens == without_stop(expected)


@pytest.mark.parametrize("endpoint", [None, EndpointConfig(vad="energy")])
def test_nothing_was_pushed(streaming_engine: Engine, endpoint: EndpointConfig | None) -> None:
    _, (text, _, _, notes), segments = hear(streaming_engine, [], replace(AGREEMENT, endpoint=endpoint))
    assert (text, segments) == ("", ())
    assert notes[0].startswith("no speech in 0.0 s")


# Several streams


@EITHER_POLICY
def test_streams_in_threads_and_in_turn_are_as_alone(
    streaming_engine: Engine, script: Callable[..., None], config: StreamConfig
) -> None:
    script(5, 30, 15, 20, 2, 25, 30, 1)
    config = replace(config, endpoint=ENDPOINT)
    recordings = [noise(40_000 + 3000 * seed, seed) for seed in range(6)]
    alone = [hear(streaming_engine, [pcm], config) for pcm in recordings]
    assert len({outcome[1][0] for outcome in alone}) == 6

    def cut(pcm: F32) -> list[F32]:
        return [pcm[first : first + 3000] for first in range(0, len(pcm), 3000)]

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(lambda pcm: hear(streaming_engine, cut(pcm), config), recordings)) == alone

    streams = [streaming_engine.stream(config=config, generation=VARIED) for _ in recordings]
    updates: list[list[Any]] = [[] for _ in streams]
    for turn in itertools.zip_longest(*map(cut, recordings)):
        for stream, piece, mine in zip(streams, turn, updates, strict=True):
            mine += [] if piece is None else map(facts, stream.push(piece))
    in_turn = [(mine, answer(stream.finish()), stream.segments) for mine, stream in zip(updates, streams, strict=True)]
    assert in_turn == alone


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
    updates, heard = [], 0
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
    return stream._slot.cache.released


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
    assert streaming_engine.tokenizer.decode(result.token_ids).startswith(result.text)
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

    patch(monkeypatch, streaming_engine, "step", cancel)
    with streaming_engine.stream(config=config, generation=VARIED) as stream:
        stream.push(noise(40_000))
        assert next(steps) == 4
        assert released(stream)
        assert stream.finish().finish_reason == "cancelled"


def test_cancelled_while_finishing(streaming_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with streaming_engine.stream(config=replace(AGREEMENT, update_s=9), generation=VARIED) as stream:
        stream.push(noise(20_000))
        patch(monkeypatch, streaming_engine, "step", lambda: stream.cancel())
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
        ({"update_s": float("nan")}, "update_s is nan; it must be above 0 seconds"),
        ({"update_s": float("inf")}, "update_s is inf"),
        ({"hypotheses": 0}, "expected hypotheses >= 1 and hold_back >= 0, got 0 and 2"),
        ({"hold_back": -1}, "expected hypotheses >= 1 and hold_back >= 0, got 2 and -1"),
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
        ({"block_s": float("nan")}, "block_s is nan; this bundle was trained for 0.32, 0.64"),
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
    monkeypatch.setattr(streaming_engine, "prompt_ids", lambda *text: PromptIds((256,), ()))
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
    assert 38_000 <= segment.end_sample <= 43_000
    assert load_vad("energy").name == "energy"
