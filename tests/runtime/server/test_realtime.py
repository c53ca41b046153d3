"""Live streams through OpenAI's own client; every event is one of its types."""

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

pytest.importorskip("fastapi", reason="the extra serve is not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")

from openai import OpenAI  # noqa: E402
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402
from websockets.sync.client import ClientConnection, connect  # noqa: E402

from salmonrun.runtime import EndpointConfig, Engine, StreamConfig  # noqa: E402
from tests.helpers.openai_shapes import parsed  # noqa: E402
from tests.helpers.servers import Running, serving  # noqa: E402

RECORDINGS = Path(__file__).parents[3] / "demo" / "recordings"
SAID = ["add paper and candles to the list", "make the living room nine degrees warmer", "wake me at twenty on friday"]
TRANSCRIPTION = "conversation.item.input_audio_transcription"
Event = dict[str, Any]


@pytest.fixture(scope="module")
def pcm() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Three sentences with a second of silence behind each, 16 kHz."""
    names = ("shopping", "heating", "wake")
    return np.concatenate(
        [np.append(soundfile.read(RECORDINGS / f"{name}.flac")[0], np.zeros(16_000)) for name in names]
    )


def pcm16(pcm: Any, rate: int = 24_000) -> bytes:
    return bytes((soxr.resample(pcm, 16_000, rate) * 32767).astype("<i2").tobytes())


def appends(data: bytes, size: int = 4800) -> Iterator[Event]:
    for first in range(0, len(data), size):
        audio = base64.b64encode(data[first : first + size]).decode()
        yield {"type": "input_audio_buffer.append", "audio": audio}


def session(**heard: Any) -> Event:
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": heard}}}


def socket(server: Running, query: str = "?intent=transcription", **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/v1/realtime{query}", **options)


def send(client: ClientConnection, *events: Event) -> None:
    for event in events:
        client.send(json.dumps(event))


def receive(client: ClientConnection, count: int, kind: str = f"{TRANSCRIPTION}.completed") -> list[Event]:
    """Events up to the `count`-th of a kind."""
    events: list[Event] = []
    while sum(event["type"] == kind for event in events) < count:
        events.append(json.loads(client.recv(timeout=60)))
    return events


def of(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["type"].endswith(kind)]


def check(events: list[Event]) -> None:
    """Each is an event of OpenAI's, ids differ, deltas add up, items follow each other."""
    for event in events:
        parsed(event)
    assert len({event["event_id"] for event in events}) == len(events)
    previous = None
    for end in of(events, ".completed"):
        own = [event for event in events if event.get("item_id", event.get("item", {}).get("id")) == end["item_id"]]
        assert "".join(event["delta"] for event in of(own, ".delta")) == end["transcript"]
        (committed,) = of(own, ".committed")
        assert committed["previous_item_id"] == previous
        previous = end["item_id"]


def test_server_vad(client: OpenAI, pcm: Any, demo_engine: Engine) -> None:
    """The items are the utterances of `Engine.stream`; their places are told in milliseconds."""
    endpoint = EndpointConfig(silence_s=0.5, pause_s=0.5, margin_s=0.3)
    with demo_engine.stream(config=StreamConfig(endpoint=endpoint), sample_rate=24_000) as stream:
        stream.push(np.frombuffer(pcm16(pcm), "<i2").astype(np.int16))
        stream.finish()
    events: list[Event] = []
    with client.realtime.connect(model="demo", extra_query={"intent": "transcription"}) as connection:
        for event in appends(pcm16(pcm)):
            connection.send(event)  # type: ignore[arg-type]
        for told in connection:
            events.append(told.to_dict())
            if len(of(events, ".completed")) == 3:
                break
    check(events)
    assert [event["transcript"] for event in of(events, ".completed")] == [s.text for s in stream.segments] == SAID
    started, stopped = of(events, "speech_started"), of(events, "speech_stopped")
    assert [event["audio_start_ms"] for event in started] == [s.start_sample // 16 for s in stream.segments]
    assert [event["audio_end_ms"] for event in stopped] == [s.end_sample // 16 for s in stream.segments]
    kinds = [event["type"] for event in events if event.get("item_id") == started[0]["item_id"]]
    assert kinds == [
        "input_audio_buffer.speech_started",
        *[f"{TRANSCRIPTION}.delta"] * len([kind for kind in kinds if kind.endswith(".delta")]),
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        f"{TRANSCRIPTION}.completed",
    ]


def test_the_client_commits(server: Running, pcm: Any) -> None:
    sentence = pcm[:40_000]
    with socket(server) as client:
        send(client, session(turn_detection=None))
        for _ in range(2):
            send(client, *appends(pcm16(sentence)), {"type": "input_audio_buffer.commit"})
        send(client, *appends(pcm16(sentence)), {"type": "input_audio_buffer.clear"})
        send(client, {"type": "input_audio_buffer.commit", "event_id": "mine"})
        events = receive(client, 1, "error")
    check(events)
    assert [event["transcript"] for event in of(events, ".completed")] == SAID[:1] * 2
    assert not of(events, "speech_started")
    (deleted,) = of(events, ".deleted")
    assert deleted["item_id"] == of(events, ".added")[-1]["item"]["id"]
    assert (events[-1]["error"]["code"], events[-1]["error"]["event_id"]) == ("input_audio_buffer_commit_empty", "mine")


def test_a_commit_of_silence(server: Running) -> None:
    """With server VAD: an item without text, and nobody has spoken."""
    with socket(server) as client:
        send(client, *appends(bytes(48_000)), {"type": "input_audio_buffer.commit"})
        events = receive(client, 1)
    check(events)
    assert [event["transcript"] for event in of(events, ".completed")] == [""]
    assert not of(events, "speech_started")


@pytest.mark.parametrize("law", ["ULAW", "ALAW"])
def test_g711(server: Running, pcm: Any, law: str) -> None:
    """The demo was trained on a telephone's band, too."""
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(pcm[:55_000], 16_000, 8000), 8000, format="RAW", subtype=law)
    with socket(server) as client:
        kind = {"ULAW": "audio/pcmu", "ALAW": "audio/pcma"}[law]
        send(client, session(format={"type": kind}), *appends(file.getvalue(), 800))
        events = receive(client, 1)
    check(events)
    assert of(events, "session.updated")[0]["session"]["audio"]["input"]["format"] == {"type": kind}
    assert of(events, ".completed")[0]["transcript"] == SAID[0]


def test_16_khz(server: Running, pcm: Any) -> None:
    """A rate that OpenAI's types do not know, and clients send: it is agreed."""
    with socket(server) as client:
        send(client, session(format={"type": "audio/pcm", "rate": 16_000}), *appends(pcm16(pcm[:55_000], 16_000)))
        events = receive(client, 1)
    agreed = events[1]["session"]["audio"]["input"]["format"]
    assert agreed == {"type": "audio/pcm", "rate": 16_000}
    agreed["rate"] = 24_000
    check(events)
    assert of(events, ".completed")[0]["transcript"] == SAID[0]


def test_the_unstable_tail_is_told_on_request(server: Running, pcm: Any) -> None:
    update = session(turn_detection=None)
    update["session"]["include"] = ["item.input_audio_transcription.partial"]
    with socket(server) as client:
        send(client, update, *appends(pcm16(pcm)), {"type": "input_audio_buffer.commit"})
        events = receive(client, 1)
    partial = of(events, ".partial")
    assert any(event["text"] for event in partial)
    heard = [event["audio_end_ms"] for event in partial]
    assert heard == sorted(heard)
    assert 0 < heard[-1] <= 1000 * len(pcm) / 16_000
    agreed = of(events, "session.updated")[0]["session"]
    assert agreed.pop("include") == update["session"]["include"]  # which OpenAI's types do not know
    check([event for event in events if event not in partial])


@pytest.mark.parametrize(
    ("update", "param", "message"),
    [
        (
            session(format={"type": "audio/pcm", "rate": 44_100}),
            "format",
            "44100 Hz; expected one of audio/pcm at 24000",
        ),
        (session(format={"type": "audio/opus"}), "format", "audio/opus"),
        (session(turn_detection={"type": "semantic_vad"}), "turn_detection.type", "'server_vad'"),
        (session(turn_detection={"type": "server_vad", "threshold": 0.9}), "turn_detection.threshold", "0.5"),
        (session(noise_reduction={"type": "near_field"}), "noise_reduction", "None"),
        (session(transcription={"model": "whisper-1"}), "model", "'whisper-1' is not served here"),
        (session(transcription={"prompt": "x" * 30_000}), None, "the limit is 20000"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "type", "'transcription'"),
        ({"type": "session.update"}, "session", ""),
        ({"type": "response.create"}, "type", "'response.create' is no event that is answered here"),
        ({"type": "input_audio_buffer.append", "audio": "@@"}, "audio", "no audio/pcm in base64"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "audio", "whole samples of 2 bytes"),
        ({"type": "input_audio_buffer.append"}, "audio", "audio is missing"),
        ({"type": "drain"}, "type", "'drain' is no event"),
        ({"type": 5}, "type", "'no event'"),
        ({}, "type", "'no event'"),
    ],
    ids=str,
)
def test_refusals_end_nothing(server: Running, pcm: Any, update: Event, param: str | None, message: str) -> None:
    with socket(server) as client:
        send(client, {**update, "event_id": "mine"}, {"type": "input_audio_buffer.commit"})
        events = receive(client, 2, "error")
    check(events)
    told = events[-2]["error"]
    assert message in told["message"]
    assert (told["param"] or "").endswith(param or "")
    assert told["event_id"] == ("mine" if update.get("type") not in (None, 5) else None)
    assert events[-1]["error"]["code"] == "input_audio_buffer_commit_empty"


def test_what_is_no_json(server: Running) -> None:
    with socket(server) as client:
        for garbage in ("", "{", "[1]", "null", "[" * 100_000, b"\x00\xff"):
            client.send(garbage)
        events = receive(client, 6, "error")
    check(events)


def test_as_many_as_keep_up(demo_engine: Engine) -> None:
    """One more is refused before it is accepted, with a time to come back; when one leaves, there is room."""
    with serving(demo_engine, max_streams=2) as running, socket(running) as second:
        receive(second, 1, "session.created")
        with socket(running) as first:
            receive(first, 1, "session.created")
            with pytest.raises(InvalidStatus) as refused, socket(running):
                pass
        response = refused.value.response
        assert response.status_code == 429
        assert int(response.headers["Retry-After"]) > 0
        assert json.loads(response.body or b"")["error"]["code"] == "realtime_capacity_exceeded"
        while not accepted(running):  # once the server has seen that the first one left
            time.sleep(0.01)


def accepted(running: Running) -> bool:
    try:
        with socket(running):
            return True
    except InvalidStatus:
        return False


def test_keys(demo_engine: Engine) -> None:
    """In a header, or, from a browser, in a protocol's name."""
    with serving(demo_engine, api_keys=("secret", "other")) as running:
        refused_options: tuple[dict[str, Any], ...] = ({}, {"additional_headers": {"Authorization": "Bearer no"}})
        for options in refused_options:
            with pytest.raises(InvalidStatus) as refused, socket(running, **options):
                pass
            assert refused.value.response.status_code == 401
        with socket(running, additional_headers={"Authorization": "Bearer other"}) as client:
            receive(client, 1, "session.created")
        with socket(running, subprotocols=["realtime", "openai-insecure-api-key.secret"]) as client:
            assert client.subprotocol == "realtime"
            receive(client, 1, "session.created")


def test_a_stream_ends_where_it_is_too_long(demo_engine: Engine, pcm: Any) -> None:
    with serving(demo_engine, max_stream_s=2.0) as running, socket(running) as client:
        send(client, session(turn_detection=None), *appends(pcm16(pcm[:40_000])))
        events = receive(client, 1, "error")
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=60)
    check(events)
    assert events[-1]["error"]["code"] == "session_expired"
    assert len(of(events, ".completed")) == 1
