"""Two hundred at once are answered as each alone; a prompt's pieces compute what they compute in any company."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from salmonrun.runtime import Engine, GenerationConfig, StreamConfig
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.rounds import Rounds
from salmonrun.runtime.running import PIECE
from salmonrun.runtime.search import Hypothesis, Need, Search
from salmonrun.runtime.terms import LIVE, WHENEVER
from tests.helpers.waiting import until

RECORDINGS = Path(__file__).parents[2] / "demo" / "recordings"
FILES = [RECORDINGS / f"{name}.flac" for name in ("shopping", "heating", "wake", "digits")]
CROWD = 8  # searches
GREEDY = GenerationConfig(max_new_tokens=24)
LONG = "Listen to all of it, and then tell me word by word " * 8  # a prompt of several pieces
Ask = Callable[[Engine], Any]


def generate(file: Path, config: GenerationConfig, **arguments: Any) -> Ask:
    def ask(engine: Engine) -> Any:
        result = engine.generate(file, config=config, **arguments)
        return result.token_ids, result.token_logprobs, result.finish_reason

    return ask


def heard(file: Path) -> Ask:
    def ask(engine: Engine) -> Any:
        with engine.listen(file) as recording:
            results = [recording.ask(task=task, config=GREEDY) for task in ("asr", "caption")]
        return [(result.token_ids, result.token_logprobs) for result in results]

    return ask


def transcribed(file: Path) -> Ask:
    def ask(engine: Engine) -> Any:
        segments, _ = engine.transcribe(file, generation=GREEDY, priority=1)
        return [(segment.token_ids, segment.score) for segment in segments]

    return ask


def streamed(file: Path) -> Ask:
    pcm = soundfile.read(file, dtype="float32")[0][:32_000]

    def ask(engine: Engine) -> Any:
        with engine.stream(config=StreamConfig(update_s=0.8, endpoint=None), generation=GREEDY) as stream:
            updates = [(update.stable, update.partial) for update in stream.push(pcm)]
            result = stream.finish()
        return updates, result.token_ids, result.token_logprobs

    return ask


def mixed() -> list[Ask]:
    """Of each kind, for each recording."""
    asks: list[Ask] = []
    for seed, file in enumerate(FILES):
        asks += [
            generate(file, GREEDY, task="asr"),
            generate(file, GREEDY, prompt=LONG, deadline_s=600.0),
            generate(file, replace(GREEDY, num_beams=3), task="caption", priority=2),
            generate(file, replace(GREEDY, do_sample=True, temperature=1.5, seed=seed), task="asr"),
            heard(file),
            transcribed(file),
            streamed(file),
        ]
    return asks


def test_two_hundred_at_once(demo_engine: Engine) -> None:
    """Token for token; on our own kernels each token's log probability is the same to the last bit."""
    asks = mixed()
    alone = [ask(demo_engine) for ask in asks]
    widths: list[int] = []
    rounds = demo_engine.model.rounds

    def watch(done: Any) -> None:
        widths.append(done.searches)

    def gate(chunk: Chunk[Any]) -> Search[Any]:
        """Holds its round: encoders take turns, and short answers would end before the next ones begin."""
        yield Need([chunk])
        until(lambda: rounds.open_searches > 3 * CROWD)
        return Hypothesis([], "stop", [])

    def held() -> None:
        decoder = demo_engine.model.decoder
        with rounds.open(1, 1) as (slot,):
            rounds.run([gate(Chunk(slot, decoder.embed([0])))])

    numbers = [number % len(asks) for number in range(200)]
    random.Random(0).shuffle(numbers)
    rounds.watchers.append(watch)
    try:
        with ThreadPoolExecutor(201) as threads:
            held_round = threads.submit(held)
            together = list(threads.map(lambda number: asks[number](demo_engine), numbers))
            held_round.result()
    finally:
        rounds.watchers.remove(watch)
    exact = demo_engine.report().decoder == "native"
    for number, found in zip(numbers, together, strict=True):
        assert found == alone[number] if exact else tokens_of(found) == tokens_of(alone[number])
    assert max(widths) > CROWD
    assert (rounds.open_searches, rounds.waiting, demo_engine.model.encoding.waiting) == (0, 0, 0)
    assert demo_engine.report().cache_bytes == 0 or not exact


def tokens_of(found: Any) -> Any:
    """Without what is a float."""
    if isinstance(found, tuple | list):
        return [tokens_of(item) for item in found if not isinstance(item, float)]
    return found


# Pieces


def logits_of(chunk: Chunk[Any], found: list[F32]) -> Search[Any]:
    logits = yield Need([chunk])
    assert logits
    found.append(logits[0])
    return Hypothesis([], "stop", [])


def pieced(engine: Engine, embeds: F32, wanted: int, company: int) -> F32:
    """The last logits of a prompt that goes through rounds, beside so many others."""
    decoder = engine.model.decoder
    rounds: Rounds[Any] = Rounds(decoder)
    found: list[F32] = []
    with decoder.open(1 + company, len(embeds)) as (slot, *others):
        crowd = [logits_of(Chunk(other, embeds[: 40 + 50 * i]), []) for i, other in enumerate(others)]
        with rounds.entered(crowd, LIVE):
            rounds.run([logits_of(Chunk(slot, embeds, wanted), found)], WHENEVER)
    return found[0]


def whole(engine: Engine, embeds: F32, wanted: int) -> F32:
    with engine.model.decoder.open(1, len(embeds)) as (slot,):
        return engine.model.decoder.forward([Chunk(slot, embeds, wanted)])[0]


def prompt_of(engine: Engine, positions: int) -> F32:
    rng = np.random.default_rng(positions)
    return engine.model.decoder.embed(rng.integers(0, engine.bundle.manifest.llm.vocab_size, positions).tolist())


@pytest.mark.parametrize("wanted", [1, 150])
@pytest.mark.parametrize("positions", [PIECE, PIECE + 1, 300])
def test_pieces_on_our_kernels_are_the_whole(demo_engine: Engine, positions: int, wanted: int) -> None:
    if demo_engine.report().decoder != "native":
        pytest.skip("the kernels were not built")
    embeds = prompt_of(demo_engine, positions)
    wanted = min(wanted, positions)
    expected = whole(demo_engine, embeds, wanted)
    for company in (0, 3):
        assert pieced(demo_engine, embeds, wanted, company).tobytes() == expected.tobytes()


@pytest.mark.onnx
@pytest.mark.parametrize("positions", [PIECE, PIECE + 1, 300])
def test_pieces_on_onnx_runtime_are_the_same_in_any_company(tiny_engine: Engine, positions: int) -> None:
    """To the bit; and those of the whole, but for rounding."""
    assert tiny_engine.report().decoder == "onnx"
    embeds = prompt_of(tiny_engine, positions)
    found = pieced(tiny_engine, embeds, 1, 0)
    assert pieced(tiny_engine, embeds, 1, 3).tobytes() == found.tobytes()
    np.testing.assert_allclose(found, whole(tiny_engine, embeds, 1), atol=1e-4)
