"""Where there is no room: who is told to come again, who is told that it will never fit, and who goes first."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import soundfile

pytest.importorskip("fastapi", reason="the extra serve is not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")

from openai import OpenAI  # noqa: E402
from websockets.exceptions import ConnectionClosed  # noqa: E402

from salmonrun.runtime import Engine, Limits  # noqa: E402
from salmonrun.runtime.server.admission import Pace  # noqa: E402
from salmonrun.runtime.server.request_queue import RequestQueue  # noqa: E402
from tests.helpers.servers import Running, serving  # noqa: E402
from tests.runtime.server.test_realtime import appends, of, pcm16, receive, send, session, socket  # noqa: E402
from tests.runtime.server.test_server import SAID, SHOPPING, metric, transcribe  # noqa: E402


@pytest.fixture(scope="module")
def small_engine(demo_bundle: Path) -> Engine:
    """With memory for one live stream and a half."""
    engine = Engine.load(demo_bundle)
    with engine.stream():
        decoder: Any = engine.model.decoder
        taken = decoder._budget._taken
    return Engine.load(demo_bundle, limits=Limits(max_cache_mib=max(1, round(1.5 * taken / 2**20))))


def close_code(client: Any) -> int | None:
    try:
        while True:
            client.recv(timeout=60)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


def test_memory_that_streams_keep(small_engine: Engine, demo_engine: Engine) -> None:
    """A second stream and a large request are told to come again; when the first has ended, there is room."""
    pcm = pcm16(soundfile.read(SHOPPING)[0])
    large = {"extra_body": {"max_new_tokens": 500}}
    never = {"extra_body": {"max_new_tokens": 1900}}
    with serving(small_engine, max_streams=4) as running:
        with socket(running) as first:
            send(first, session(turn_detection=None), *appends(pcm))
            receive(first, 1, "conversation.item.added")
            with socket(running) as second:
                send(second, session(turn_detection=None), next(appends(pcm)))  # more might meet a closed socket
                refused = receive(second, 1, "error")[-1]["error"]
                assert (refused["code"], refused["type"]) == ("engine_overloaded", "server_error")
                assert close_code(second) == 1013
            with pytest.raises(openai.InternalServerError, match=r"MiB are free: .* ask again later") as busy:
                transcribe(running, **large)
            assert (busy.value.status_code, busy.value.code) == (503, "engine_overloaded")
            assert int(busy.value.response.headers["Retry-After"]) > 0
            with pytest.raises(openai.BadRequestError, match="the limit is") as too_long:
                transcribe(running, **never)
            assert too_long.value.code == "context_length_exceeded"
            send(first, {"type": "input_audio_buffer.commit"})
            assert of(receive(first, 1), ".completed")[0]["transcript"] == SAID
        assert metric(running, "streams_given_up_total") == 1
        assert metric(running, "kv_cache_usage_perc") < 1
        assert transcribe(running, **large) == SAID


def test_a_stream_that_will_never_catch_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the text of what was heard, then an error, then 1013."""
    late: list[float] = []

    def heard(self: Pace, seconds: float, now: float) -> float:
        late.append(0.0 if len(late) < 1 else 31.0)
        return late[-1]

    monkeypatch.setattr(Pace, "heard", heard)
    pcm = pcm16(soundfile.read(SHOPPING)[0])
    with socket(server) as client:
        parts = appends(pcm, 72_000)  # of 1.5 s
        send(client, session(turn_detection=None), next(parts))
        events = receive(client, 1, "conversation.item.added")
        send(client, next(parts))
        events += receive(client, 1, "error")
        assert events[-1]["error"]["code"] == "realtime_capacity_exceeded"
        assert "31 s behind real time" in events[-1]["error"]["message"]
        assert SAID.startswith(of(events, ".completed")[0]["transcript"][:3])
        assert close_code(client) == 1013


def test_the_queue_is_in_order_of_priority_and_survives_who_leaves() -> None:
    async def unhurried() -> None:
        pass

    async def run() -> list[str]:
        queue, order, go = RequestQueue(1, 10, unhurried), [], asyncio.Event()

        async def ask(name: str, priority: int) -> None:
            async with queue.turn(priority):
                order.append(name)
                await go.wait()

        tasks = {}
        for name, priority in (("first", 5), ("late", 2), ("leaves", 0), ("early", 1), ("second early", 1)):
            tasks[name] = asyncio.create_task(ask(name, priority))
            await asyncio.sleep(0)
        assert (queue.running, queue.waiting) == (1, 4)
        tasks["leaves"].cancel()
        go.set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert (queue.running, queue.waiting) == (0, 0)
        return order

    assert asyncio.run(run()) == ["first", "early", "second early", "late"]


def test_a_turn_that_comes_while_one_leaves_is_passed_on() -> None:
    """Cancelled in the moment in which it became its turn."""

    async def unhurried() -> None:
        pass

    async def run() -> None:
        queue = RequestQueue(1, 10, unhurried)
        turns = [queue.turn(), queue.turn()]
        async with queue.turn():
            waiting, behind = [asyncio.create_task(turn.__aenter__()) for turn in turns]
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait_for(behind, 10)
        assert (queue.running, queue.waiting) == (1, 0)

    asyncio.run(run())


def test_clients_of_other_priorities(client: OpenAI) -> None:
    given: Any = {"file": SHOPPING, "model": "demo"}
    assert client.audio.transcriptions.create(**given, extra_body={"priority": 3}).text == SAID
    with pytest.raises(openai.BadRequestError, match="greater than or equal to 0"):
        client.audio.transcriptions.create(**given, extra_body={"priority": -1})
