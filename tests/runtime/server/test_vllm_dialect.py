"""Live streams in vLLM's dialect, as its example clients send them, beside OpenAI's on the same address."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import soundfile

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("openai", reason="OpenAI's client is not installed")

import httpx2
from websockets.sync.client import ClientConnection

from salmonrun.runtime import Engine
from tests.helpers.servers import Running
from tests.runtime.server.test_realtime import pcm16, receive, send, session, socket

SHOPPING = Path(__file__).parents[3] / "demo" / "recordings" / "shopping.flac"
SAID = "add paper and candles to the list"
COMMIT = {"type": "input_audio_buffer.commit"}
FINAL = {**COMMIT, "final": True}


def append(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}


def speak(client: ClientConnection) -> None:
    """4 KiB at a time."""
    data = pcm16(soundfile.read(SHOPPING)[0], 16_000)
    send(client, *(append(data[first : first + 4096]) for first in range(0, len(data), 4096)))


def test_what_its_client_does(server: Running, demo_engine: Engine) -> None:
    """Twice on one socket: deltas add up to the text, which is that of a whole stream."""
    with socket(server, "") as client:
        (created,) = receive(client, 1, "session.created")
        assert created["id"] == created["session"]["id"]
        assert isinstance(created["created"], int)
        for _ in range(2):
            send(client, {"type": "session.update", "model": "demo"}, COMMIT)
            speak(client)
            send(client, FINAL)
            *deltas, done = receive(client, 1, "transcription.done")
            assert {event["type"] for event in deltas} == {"transcription.delta"}
            assert "".join(event["delta"] for event in deltas) == done["text"] == SAID
            assert set(done) == {"type", "text", "usage"}


@pytest.mark.parametrize("usage", [True, False])
def test_a_transcription_that_its_benchmark_asks_for(server: Running, usage: bool) -> None:
    """`vllm bench serve --backend openai-audio` reads chunks with choices, and the tokens of the answer."""
    form = {"model": "demo", "stream": "True", "language": "en", "max_completion_tokens": "50"}
    form |= {"stream_include_usage": str(usage), "stream_continuous_usage_stats": "True"}
    answer = httpx2.post(
        f"{server.url}/v1/audio/transcriptions", data=form, files={"file": SHOPPING.read_bytes()}, timeout=60
    )
    assert answer.text.endswith("data: [DONE]\n\n")
    told = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    assert {event["object"] for event in told} == {"transcription.chunk"}
    choices = [event["choices"][0] for event in told if event["choices"]]
    assert "".join(choice["delta"]["content"] for choice in choices) == SAID
    assert [choice["finish_reason"] for choice in choices][-2:] == [None, "stop"]
    assert [event["usage"] for event in told if not event["choices"]] == [{"completion_tokens": 11}] * usage


def test_errors_in_its_words(server: Running) -> None:
    with socket(server, "") as client:
        receive(client, 1, "session.created")
        send(client, {"type": "session.update", "model": "whisper-1"})
        send(client, {"type": "session.update", "model": None})
        send(client, {"type": "session.update", "model": "demo"}, COMMIT, append(b"odd"), {"type": "no"}, FINAL)
        *errors, done = receive(client, 1, "transcription.done")
        assert done == {"type": "transcription.done", "text": "", "usage": None}
    assert [(set(event), event["type"], event["code"]) for event in errors] == [
        ({"type", "error", "code"}, "error", code)
        for code in ("model_not_found", "invalid_event", "invalid_audio", "unknown_event")
    ]
    assert "'whisper-1' is not served here" in errors[0]["error"]


@pytest.mark.parametrize("where", ["?model=demo", "?intent=transcription"])
def test_openai_is_not_bent(server: Running, where: str) -> None:
    """Its clients name a model or an intent when they connect; what an event means there is as it was."""
    with socket(server, where) as client:
        (created,) = receive(client, 1, "session.created")
        assert set(created) == {"type", "event_id", "session"}
        send(client, session(turn_detection=None), COMMIT)
        assert json.dumps(receive(client, 1, "error")[-1]).count("input_audio_buffer_commit_empty") == 1
        speak(client)
        send(client, COMMIT)
        assert receive(client, 1)[-1]["type"].endswith(".completed")
