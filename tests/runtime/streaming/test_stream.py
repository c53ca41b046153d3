"""Streams on a tiny model: against the engine and PyTorch on whole recordings, and what is kept in the books."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from salmonrun.runtime import EndpointConfig, Engine, GenerationConfig, StreamConfig
from salmonrun.runtime.audio import F32
from salmonrun.runtime.config import Block
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.prompt import prompt_ids
from salmonrun.runtime.search import Hypothesis
from salmonrun.runtime.streaming.agreement import LocalAgreement
from salmonrun.runtime.streaming.block_encoder import LOOK_AHEAD
from salmonrun.runtime.streaming.utterance import Utterance
from salmonrun.runtime.vad import VAD_HOP
from salmonrun.training.model.salmonn import SalmonnModel
from tests.helpers.answers import answer
from tests.helpers.streams import (
    AGREEMENT,
    AT_THE_END_ONLY,
    BLOCK,
    BLOCKS,
    ENDPOINT,
    HOP_S,
    PLAIN,
    VARIED,
    WINDOW,
    before_rounds,
    facts,
    hear,
    is_as_alone,
    noise,
    pieces,
    without_stop,
)

EITHER_POLICY = pytest.mark.parametrize("config", [AGREEMENT, BLOCKS], ids=["agreement", "block"])
WITH_AND_WITHOUT_ENDPOINTS = pytest.mark.parametrize("endpoint", [None, ENDPOINT], ids=["endless", "endpoints"])

pytestmark = pytest.mark.filterwarnings("ignore:Passing .* with `inputs_embeds`:UserWarning")


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


@EITHER_POLICY
def test_a_draft_that_is_right_costs_one_pass(
    streaming_engine: Engine, monkeypatch: pytest.MonkeyPatch, config: StreamConfig
) -> None:
    """The same answer from any draft; from the right one without a step."""
    rounds: list[int] = []
    before_rounds(monkeypatch, streaming_engine, lambda chunks: rounds.append(len(chunks[0].inputs)))
    pcm = noise(20_000)
    expected = hear(streaming_engine, [pcm], replace(config, hypotheses=AT_THE_END_ONLY))
    assert rounds.count(1) > 0
    right = expected[1][1]
    rounds.clear()
    with streaming_engine.stream(config=replace(config, update_s=9.0), generation=VARIED) as stream:
        begin = stream._begin

        def begin_with_a_draft() -> Utterance:
            utterance = begin()
            utterance._hypothesis = Hypothesis(right, "stop", [0.0] * len(right))
            return utterance

        monkeypatch.setattr(stream, "_begin", begin_with_a_draft)
        stream.push(pcm)
        assert answer(stream.finish())[:2] == expected[1][:2]
    assert len(rounds) == 1
    assert rounds[0] > len(right)


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
        start, end = segment.window
        assert start == segment.start_sample
        encoded = config.policy == "block" and 0 < end - segment.end_sample <= 10 * VAD_HOP  # silence, rule 2's at most
        assert end == segment.end_sample or encoded
        assert end - start <= WINDOW
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
    """From the margin before the first speech to the margin behind the last."""
    script(5, 20, 60)
    assert bounds(streaming_engine, 80, config) == ([(2, 28)], [35])
    script(5, 10, 9, 18, 60)
    assert bounds(streaming_engine, 80, config) == ([(2, 45)], [52])


def test_rule_3_the_utterance_is_long(streaming_engine: Engine, script: Callable[..., None]) -> None:
    """It ends at the first short pause, of four hops, behind 50 hops; the pause before that was too early."""
    script(0, 30, 4, 30, 3, 20, 4, 20)
    assert bounds(streaming_engine, 111, AGREEMENT) == ([(0, 90), (90, 111)], [91])


@EITHER_POLICY
def test_speech_right_behind_an_utterance_has_its_margin(
    streaming_engine: Engine, script: Callable[..., None], config: StreamConfig
) -> None:
    """Silence that was heard as the utterance's is the margin in front of the next one, encoded in a block or not."""
    script(5, 20, 10, 20, 60)
    assert bounds(streaming_engine, 80, config) == ([(2, 28), (32, 58)], [35, 65])


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
        found = list(threads.map(lambda pcm: hear(streaming_engine, cut(pcm), config), recordings))
    assert is_as_alone(found, alone, streaming_engine)

    streams = [streaming_engine.stream(config=config, generation=VARIED) for _ in recordings]
    updates: list[list[Any]] = [[] for _ in streams]
    for turn in itertools.zip_longest(*map(cut, recordings)):
        for stream, piece, mine in zip(streams, turn, updates, strict=True):
            mine += [] if piece is None else map(facts, stream.push(piece))
    in_turn = [(mine, answer(stream.finish()), stream.segments) for mine, stream in zip(updates, streams, strict=True)]
    assert is_as_alone(in_turn, alone, streaming_engine)
