"""`Engine.agenerate`: several tasks wait for one engine, the loop goes on, and a cancelled task stops its request."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from salmonrun.runtime import Engine, GenerationConfig, PromptError

LENGTHS = (3, 5, 8, 13)


def test_several_tasks(tiny_engine: Engine, speech: Path) -> None:
    configs = [GenerationConfig(max_new_tokens=length) for length in LENGTHS]
    expected = [tiny_engine.generate(speech, config=config).token_ids for config in configs]

    async def ask() -> tuple[list[list[int]], int]:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        heart = asyncio.create_task(beat())
        results = await asyncio.gather(*(tiny_engine.agenerate(speech, config=config) for config in configs))
        heart.cancel()
        return [result.token_ids for result in results], beats

    answers, beats = asyncio.run(ask())
    assert answers == expected
    assert beats > len(LENGTHS)  # the loop was free while they were answered


def test_an_error_comes_out_of_the_await(tiny_engine: Engine, speech: Path) -> None:
    async def ask() -> None:
        good, bad = (asyncio.create_task(tiny_engine.agenerate(speech, task=task)) for task in ("asr", "sing"))
        with pytest.raises(PromptError, match="unknown task 'sing'"):
            await bad
        assert (await good).token_ids

    asyncio.run(ask())


def test_a_task_that_is_cancelled_stops_its_request(
    tiny_engine: Engine, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the longest answer is over; the loop's end would wait for the thread otherwise."""
    longest = tiny_engine.model.decoder.max_length // 2
    config = GenerationConfig(max_new_tokens=longest, stop_token_ids=())
    reasons: list[tuple[str, int]] = []
    begun = threading.Event()
    original = tiny_engine.generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        result = original(*args, **kwargs)
        reasons.append((result.finish_reason, len(result.token_ids)))
        return result

    monkeypatch.setattr(tiny_engine, "generate", generate)

    async def ask() -> None:
        task = asyncio.create_task(tiny_engine.agenerate(speech, config=config))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    ((reason, tokens),) = reasons
    assert reason == "cancelled"
    assert tokens < longest
