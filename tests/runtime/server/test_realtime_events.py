"""Every event that a live stream can send, as OpenAI's types have it; and OpenAI's asynchronous client."""

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import pytest
import soundfile
import soxr

pytest.importorskip("fastapi", reason="the extra serve is not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")

from openai import AsyncOpenAI  # noqa: E402

from salmonrun.runtime.errors import AudioError  # noqa: E402
from salmonrun.runtime.server.realtime import events as told_by  # noqa: E402
from salmonrun.runtime.streaming.stream import Stream  # noqa: E402
from tests.helpers.openai_shapes import parsed  # noqa: E402
from tests.helpers.servers import Running  # noqa: E402
from tests.runtime.server.test_realtime import Event, appends, of, pcm16, receive, send, session, socket  # noqa: E402

SHOPPING = Path(__file__).parents[3] / "demo" / "recordings" / "shopping.flac"
SAID = "add paper and candles to the list"
COMMIT: Event = {"type": "input_audio_buffer.commit"}
CLEAR: Event = {"type": "input_audio_buffer.clear"}
ALL = {
    *("session.created", "session.updated", "error"),
    *("input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"),
    *("input_audio_buffer.committed", "input_audio_buffer.cleared"),
    *("conversation.item.added", "conversation.item.done", "conversation.item.deleted"),
    *(told_by.DELTA, told_by.COMPLETED, told_by.FAILED, told_by.PARTIAL),
}


def test_every_event(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is the only one that OpenAI's types do not know, and `include` and 16 kHz the only values."""
    pcm = soundfile.read(SHOPPING)[0]
    manual = session(turn_detection=None, format={"type": "audio/pcm", "rate": 16_000})
    manual["session"]["include"] = ["item.input_audio_transcription.partial"]
    with socket(server) as client:
        send(client, *appends(pcm16(pcm)), COMMIT, manual, *appends(pcm16(pcm, 16_000)), COMMIT)
        send(client, *appends(pcm16(pcm, 16_000)), CLEAR, {"type": "no"})
        events = receive(client, 1, "error")
        push = Stream.push

        def fail(self: Stream, *given: Any, **more: Any) -> Any:
            push(self, *given, **more)
            raise AudioError("a sample is not finite")

        send(client, *appends(pcm16(pcm[:8000], 16_000)))
        events += receive(client, 1, "conversation.item.added")
        monkeypatch.setattr(Stream, "push", fail)
        send(client, *appends(pcm16(pcm[:8000], 16_000)))
        events += receive(client, 1, told_by.FAILED)
    assert {event["type"] for event in events} == ALL
    for event in events:
        if event["type"] == "session.updated":
            assert event["session"].pop("include") == manual["session"]["include"]
            event["session"]["audio"]["input"]["format"]["rate"] = 24_000
        if event["type"] != told_by.PARTIAL:
            parsed(event)
    assert [event["transcript"] for event in of(events, ".completed")] == [SAID] * 2


def test_every_event_is_in_the_docs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    for kind in ALL:
        assert f"`{kind}`" in page or f"`.{kind.rpartition('.')[2]}`" in page, kind


def telephone(pcm: Any, law: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(pcm, 16_000, 8000), 8000, format="RAW", subtype=law)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["pcm 16000", "pcm 24000", "pcmu", "pcma"])
def test_the_asynchronous_client(server: Running, kind: str) -> None:
    """A transcription session with server VAD, as OpenAI's documentation opens one."""
    pcm, form = soundfile.read(SHOPPING)[0], f"audio/{kind.split()[0]}"
    pcm = [*pcm, *[0.0] * 16_000]
    given: Event = {"type": form}
    if form == "audio/pcm":
        given["rate"] = int(kind.split()[1])
        data, size = pcm16(pcm, given["rate"]), given["rate"] // 5
    else:
        data, size = telephone(pcm, "ULAW" if form == "audio/pcmu" else "ALAW"), 800

    async def run() -> list[Any]:
        events = []
        async with (
            AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
            client.realtime.connect(extra_query={"intent": "transcription"}) as connection,
        ):
            turns = {"type": "server_vad", "silence_duration_ms": 500}
            update: Any = {"format": given, "transcription": {"model": "demo"}, "turn_detection": turns}
            await connection.session.update(session={"type": "transcription", "audio": {"input": update}})
            for first in range(0, len(data), size):
                audio = base64.b64encode(data[first : first + size]).decode()
                await connection.input_audio_buffer.append(audio=audio)
            async for event in connection:
                events.append(event)
                if event.type == told_by.COMPLETED or event.type == "error":
                    return events
        return events

    events = asyncio.run(run())
    kinds = [event.type for event in events]
    assert kinds[:2] == ["session.created", "session.updated"]
    assert events[1].session.audio.input.format.type == form
    said = [event for event in events if event.type == told_by.DELTA]
    assert "".join(event.delta for event in said) == events[-1].transcript == SAID
    order = ["input_audio_buffer.speech_started", "conversation.item.added", told_by.DELTA]
    order += ["input_audio_buffer.speech_stopped", "input_audio_buffer.committed", "conversation.item.done"]
    assert [kind for at, kind in enumerate(kinds) if kind in order and kind not in kinds[:at]] == order
