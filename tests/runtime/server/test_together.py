"""Many requests of all kinds at once: each is answered as alone, token for token."""

import base64
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import soundfile

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("openai", reason="OpenAI's client is not installed")

from openai import OpenAI
from websockets.exceptions import InvalidStatus

from tests.helpers.servers import Running
from tests.runtime.server.test_realtime import appends, of, pcm16, receive, send, session, socket

RECORDINGS = Path(__file__).parents[3] / "demo" / "recordings"
FILES = [RECORDINGS / f"{name}.flac" for name in ("shopping", "heating", "wake", "digits", "rain", "bell")]
Ask = Callable[[], Any]


def transcription(client: OpenAI, file: Path, **fields: Any) -> Ask:
    def ask() -> Any:
        answer = client.audio.transcriptions.create(
            file=file, model="demo", response_format="verbose_json", extra_body=fields
        )
        return [segment.tokens for segment in answer.segments or ()]

    return ask


def answer(client: OpenAI, file: Path, **fields: Any) -> Ask:
    data = base64.b64encode(file.read_bytes()).decode()
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    messages: Any = [{"role": "user", "content": [audio]}]

    def ask() -> Any:
        stream = client.chat.completions.create(model="demo", messages=messages, stream=True, extra_body=fields)
        return [chunk.choices[0].delta.content for chunk in stream]

    return ask


def live(server: Running, file: Path) -> Ask:
    pcm = pcm16(soundfile.read(file)[0])

    def ask() -> Any:
        with admitted(server) as client:
            send(client, session(turn_detection=None), *appends(pcm), {"type": "input_audio_buffer.commit"})
            return of(receive(client, 1), ".completed")[0]["transcript"]

    return ask


def admitted(server: Running) -> Any:
    """A socket. While streams are late, as on a busy machine, none is let in: who is told so comes again."""
    while True:
        try:
            return socket(server)
        except InvalidStatus as refused:
            if refused.response.status_code != 429:
                raise
            time.sleep(0.2)


def test_everything_at_once(server: Running, client: OpenAI) -> None:
    asks: list[Ask] = []
    for seed, file in enumerate(FILES):
        asks += [
            transcription(client, file),
            transcription(client, file, num_beams=3),
            transcription(client, file, temperature=1.5, seed=seed),
            answer(client, file, task="caption"),
            answer(client, file, task="asr", num_beams=2),
            live(server, file),
        ]
    alone = [ask() for ask in asks]
    with ThreadPoolExecutor(8) as threads:  # as many streams as there may be
        together = list(threads.map(lambda ask: ask(), asks))
    assert json.dumps(together) == json.dumps(alone)
    assert len({json.dumps(one) for one in alone}) > len(FILES)
