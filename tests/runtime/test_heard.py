"""Recordings that are encoded once and asked about many times."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from salmonrun.runtime import Engine, GenerationConfig, Result
from salmonrun.runtime.audio import F32
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.errors import ClosedError
from tests.helpers.answers import EACH_SEARCH, VARIED, answer, collect, noise, requests


@EACH_SEARCH
@pytest.mark.parametrize(
    "asked",
    [
        {"task": "asr"},
        {"task": "qa", "question": "Who speaks?"},
        {"prompt": "Describe."},
        {"prompt": "<SpeechHere>Describe."},
        {"prompt": "Here it comes: <Speech><SpeechHere></Speech> What was that?"},
    ],
    ids=["task", "question", "prompt", "bare mark", "text in front"],
)
def test_asking_is_generating(
    tiny_engine: Engine, speech: Path, asked: dict[str, Any], config: GenerationConfig
) -> None:
    with tiny_engine.listen(speech) as heard:
        first = heard.ask(**asked, config=config)
        again = heard.ask(**asked, config=config)
    assert answer(first) == answer(again) == answer(tiny_engine.generate(speech, **asked, config=config))


@pytest.mark.parametrize("num_beams", [1, 4])
def test_asking_a_model_that_hears(golden_bundle: Path, num_beams: int) -> None:
    """The golden model's answers depend on the sound, and so on whose KV is used."""
    engine = Engine.load(golden_bundle)
    config = GenerationConfig(max_new_tokens=16, num_beams=num_beams, stop_token_ids=())
    sounds = [noise(2.0, seed=1), noise(1.0, seed=2) * 5]
    prompts = ["Describe the audio.", "<Speech><SpeechHere></Speech> What is said?", "Now: <SpeechHere> What?"]
    expected = [
        [engine.generate(sound, prompt=prompt, config=config, sample_rate=16000).token_ids for prompt in prompts]
        for sound in sounds
    ]
    assert len({tuple(ids) for answers in expected for ids in answers}) > len(prompts)
    with engine.listen(sounds[0], sample_rate=16000) as one, engine.listen(sounds[1], sample_rate=16000) as other:
        for _ in range(2):
            for i, prompt in enumerate(prompts):
                assert one.ask(prompt, config=config).token_ids == expected[0][i]
                assert other.ask(prompt, config=config).token_ids == expected[1][i]


@pytest.mark.parametrize("prompt", ["Describe.", "<Speech><SpeechHere></Speech> What is said?"])
def test_asking_computes_only_the_prompts_text(
    tiny_engine: Engine, speech: Path, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else listening saves nothing of the prefill. These are the forms of prompt that every task has."""
    appended: list[int] = []
    forward = tiny_engine.model.decoder.forward

    def counting(chunks: Sequence[Chunk[Any]]) -> list[F32]:
        appended.extend(len(chunk.inputs) for chunk in chunks)
        return forward(chunks)

    with tiny_engine.listen(speech) as heard:
        monkeypatch.setattr(tiny_engine.model.decoder, "forward", counting)
        answer = heard.ask(prompt, config=VARIED)
    text = "</Speech> Describe.\nASSISTANT:" if prompt == "Describe." else "</Speech> What is said?\nASSISTANT:"
    steps = [1] * (len(answer.token_ids) - 1)
    assert appended == [len(text), *steps]  # the tiny tokenizer's tokens are bytes


def test_asking_streams(tiny_engine: Engine, speech: Path) -> None:
    with tiny_engine.listen(speech) as heard:
        pieces, result = collect(heard.ask_iter("Describe.", config=VARIED))
    assert "".join(pieces) == result.text
    assert len(pieces) > 1


def test_asking_can_be_cancelled(tiny_engine: Engine, speech: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    with tiny_engine.listen(speech) as heard:
        assert heard.ask("Describe.", cancel=cancel).finish_reason == "cancelled"
        assert heard.ask("Describe.", config=VARIED).finish_reason == "length"


def test_eight_threads_ask_about_one_recording(tiny_engine: Engine, speech: Path) -> None:
    start = threading.Barrier(8)
    with tiny_engine.listen(speech) as heard, ThreadPoolExecutor(8) as pool:

        def ask(request: tuple[F32, str, GenerationConfig]) -> Result:
            start.wait(30)
            return heard.ask(f"<SpeechHere>{request[1]}", config=request[2])

        expected = [
            tiny_engine.generate(speech, prompt=f"<SpeechHere>{prompt}", config=config)
            for _, prompt, config in requests()
        ]
        assert [answer(result) for result in pool.map(ask, requests())] == [answer(result) for result in expected]


def test_asking_takes_no_encoding(tiny_engine: Engine, speech: Path) -> None:
    with tiny_engine.listen(speech) as heard:
        timings = heard.ask("Describe.", config=VARIED).timings
    assert timings.features_s == timings.encode_s == 0
    assert 0 < timings.prefill_s <= timings.ttft_s <= timings.total_s


def test_a_closed_recording_says_so(tiny_engine: Engine, speech: Path) -> None:
    with tiny_engine.listen(speech) as heard:
        begun = heard.ask_iter("What is it?")
    with pytest.raises(ClosedError, match="inside the `with"):
        next(begun)
    with pytest.raises(ClosedError, match="inside the `with"):
        heard.ask("What is it?")
