"""Scores are the model's own log probabilities, and a threshold says which are too low."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from salmonrun.runtime import Engine, GenerationConfig, StreamConfig
from salmonrun.runtime.beam_search import beam_search
from salmonrun.runtime.config import PromptConfig
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.logits import log_probability
from salmonrun.runtime.model import NOTHING_HEARD
from salmonrun.runtime.rounds import run_together
from salmonrun.runtime.search import StopRules, decode
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.checkpoint import load
from salmonrun.training.model.salmonn import SalmonnModel
from tests.helpers.answers import BEAMS, EACH_SEARCH, VARIED, collect, noise, with_nothing, with_threshold
from tests.helpers.searches import TorchDecoder, prompt_embeds, tiny_llama
from tests.helpers.streams import AGREEMENT, BLOCKS

pytestmark = pytest.mark.filterwarnings("ignore:Passing .* with `inputs_embeds`:UserWarning")


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> SalmonnModel:
    return load(tiny_checkpoint)


def test_a_log_probability_is_that_of_torch() -> None:
    for logits in (np.random.default_rng(0).normal(0, 5, 1000), np.array([1e4, -1e4, 0.0]), np.zeros(1)):
        expected = torch.from_numpy(logits).log_softmax(-1)
        found = [log_probability(logits.astype(np.float32), token) for token in range(len(logits))]
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-6)


@EACH_SEARCH
def test_scores_are_those_of_the_answer_read_by_pytorch(
    tiny_engine: Engine, model: SalmonnModel, speech: Path, config: GenerationConfig
) -> None:
    """Bans and temperature choose the tokens; the scores are the model's own."""
    result = tiny_engine.generate(speech, prompt="Write.", config=config)
    with torch.inference_mode():
        embeds = model.embed_prompt(model.encode(model.load_audio(speech, None)), "Write.")
    expected = model.logprobs(embeds, result.token_ids)
    np.testing.assert_allclose(result.token_logprobs, expected, atol=1e-3)
    assert result.score == pytest.approx(np.mean(expected), abs=1e-3)
    assert result.low_confidence is None


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_transformers(num_beams: int, seed: int) -> None:
    llm, embeds, stop = tiny_llama(seed, 40, likely=(0,)), prompt_embeds(seed), StopRules(frozenset({0}))
    config = GenerationConfig(max_new_tokens=12, num_beams=num_beams)
    decoder = TorchDecoder(llm)
    with decoder.open(num_beams, 100) as slots:
        prompt = Chunk(slots[0], embeds)
        search = (
            decode(prompt, config, stop) if num_beams == 1 else beam_search(prompt, slots, len(embeds), config, stop)
        )
        (ours,) = run_together(decoder, [search])
    theirs = llm.generate(
        inputs_embeds=torch.from_numpy(embeds)[None],
        attention_mask=torch.ones((1, len(embeds)), dtype=torch.long),
        do_sample=False,
        max_new_tokens=12,
        num_beams=num_beams,
        eos_token_id=0,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    beams = getattr(theirs, "beam_indices", None)
    expected = llm.compute_transition_scores(theirs.sequences, theirs.scores, beams, normalize_logits=num_beams == 1)
    assert ours.tokens == theirs.sequences[0, : len(ours.tokens)].tolist()
    np.testing.assert_allclose(ours.logprobs, expected[0, : len(ours.tokens)], atol=1e-4)


def test_no_tokens_have_no_score(tiny_engine: Engine) -> None:
    result = with_threshold(tiny_engine, -1.0).generate(0 * noise(1.0), sample_rate=16000)
    assert (result.token_ids, result.token_logprobs, result.score, result.low_confidence) == ([], [], None, None)


def test_a_result_below_the_threshold_says_so(tiny_engine: Engine, speech: Path) -> None:
    score = tiny_engine.generate(speech, config=VARIED).score
    assert score is not None
    for threshold, low in ((score, False), (score + 1e-3, True)):
        result = with_threshold(tiny_engine, threshold).generate(speech, config=VARIED)
        assert (result.score, result.low_confidence) == (score, low)


def test_rejecting_needs_a_threshold(tiny_engine: Engine, speech: Path) -> None:
    with pytest.raises(ConfigError, match="no confidence threshold: export it again with --calibration-speech"):
        tiny_engine.stream(config=StreamConfig(reject=True))


# Streams


@pytest.mark.parametrize("config", [AGREEMENT, BLOCKS], ids=["agreement", "block"])
def test_an_utterance_has_the_score_of_its_tokens_and_their_end(streaming_engine: Engine, config: StreamConfig) -> None:
    """What was certain keeps the log probability it had then: with nothing certain, they are those of the last pass."""
    with streaming_engine.stream(config=replace(config, hypotheses=99), generation=VARIED) as stream:
        stream.push(noise(1.6))
        result = stream.finish()
    (segment,) = stream.segments
    assert len(result.token_logprobs) == len(result.token_ids) > 0
    assert segment.score == result.score
    if config.policy == "agreement":
        offline = streaming_engine.generate(noise(1.6), sample_rate=16000, config=VARIED)
        assert segment.score == pytest.approx(offline.score, abs=1e-4)
        np.testing.assert_allclose(result.token_logprobs, offline.token_logprobs[: len(result.token_ids)], atol=1e-4)


def test_certain_tokens_keep_their_log_probabilities(streaming_engine: Engine) -> None:
    with streaming_engine.stream(config=AGREEMENT, generation=VARIED) as stream:
        updates = stream.push(noise(1.6))
        result = stream.finish()
    assert any(update.stable for update in updates)
    assert len(result.token_logprobs) == len(result.token_ids)
    assert all(-50 < logprob <= 0 for logprob in result.token_logprobs)


@pytest.mark.parametrize("reject", [True, False])
def test_what_is_not_credible_is_not_stable(streaming_engine: Engine, reject: bool) -> None:
    engine = with_threshold(streaming_engine, -1e-9)
    with engine.stream(config=replace(AGREEMENT, reject=reject), generation=VARIED) as stream:
        updates = stream.push(noise(1.6))
        result = stream.finish()
    assert result.low_confidence
    assert stream.segments[0].low_confidence
    assert all(update.partial for update in updates)
    assert any(update.stable for update in updates) != reject
    assert (result.text == "") == reject
    assert any("1 of 1 utterances rejected: score below -0.00" in note for note in result.notes) == reject


# Nothing to be transcribed


@EACH_SEARCH
def test_an_answer_that_says_nothing_has_no_text(tiny_engine: Engine, speech: Path, config: GenerationConfig) -> None:
    plain, believing = tiny_engine.generate(speech, config=config), replace(config, nothing_threshold=0.0)
    pieces, result = collect(with_nothing(tiny_engine, plain.text.strip()).generate_iter(speech, config=believing))
    assert (pieces, result.text, result.token_ids) == ([], "", plain.token_ids)
    assert result.notes == (*plain.notes, NOTHING_HEARD)
    another = with_nothing(tiny_engine, plain.text.strip() + "!")
    pieces, result = collect(another.generate_iter(speech, config=believing))
    assert ("".join(pieces), result.text, result.notes) == (plain.text, plain.text, plain.notes)


@pytest.mark.parametrize("config", [VARIED, BEAMS], ids=["greedy", "beams"])
def test_who_is_unsure_of_nothing_says_the_next_best(
    tiny_engine: Engine,
    model: SalmonnModel,
    monkeypatch: pytest.MonkeyPatch,
    speech: Path,
    config: GenerationConfig,
) -> None:
    """As the reference: transformers' own search with the rule among its processors."""
    first = tiny_engine.generate(speech, config=config).token_ids[0]
    engine = with_nothing(tiny_engine, "(nothing)")
    monkeypatch.setattr(SalmonnModel, "prompts", engine.bundle.manifest.prompt)
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda own, text: [first] if text == "(nothing)" else encode(own, text))
    for threshold, said in ((0.0, True), (1.0, False)):
        believing = replace(config, nothing_threshold=threshold)
        found = engine.generate(speech, task="asr", config=believing).token_ids
        assert (found[0] == first) == said
        assert found == model.generate(speech, task="asr", config=believing)


@pytest.mark.parametrize("nothing", [True, False])
def test_a_stream_that_hears_nothing_has_no_text(
    streaming_engine: Engine, monkeypatch: pytest.MonkeyPatch, nothing: bool
) -> None:
    """Whatever the model answers stands for nothing."""
    monkeypatch.setattr(PromptConfig, "says_nothing", lambda self, text: nothing)
    with streaming_engine.stream(config=AGREEMENT, generation=VARIED) as stream:
        updates = stream.push(noise(1.6))
        result = stream.finish()
    (segment,) = stream.segments
    assert len(updates) > 2
    assert any(update.stable + update.partial for update in updates) != nothing
    assert (result.text == segment.text == "") == nothing
    assert (NOTHING_HEARD in segment.notes) == nothing
    assert result.token_ids == segment.token_ids != []
