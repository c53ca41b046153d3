"""Clients that keep a server busy, and note what each was told and when."""

import base64
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import soundfile
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

RATE = 16_000
PIECE = RATE // 10  # samples that a stream sends at once
EVERY_S = 0.5  # a client asks
_COMPLETED = "conversation.item.input_audio_transcription.completed"
_FORMAT = {"format": {"type": "audio/pcm", "rate": RATE}, "turn_detection": None}
_SESSION = {"type": "session.update", "session": {"type": "transcription", "audio": {"input": _FORMAT}}}


@dataclass
class Requests:
    """One client that asks for a transcription again and again."""

    url: str
    recording: Path
    stop: threading.Event
    answers: list[tuple[float, float, int, str]] = field(default_factory=list)  # begun, seconds, status, body

    def run(self) -> None:
        """Until it is stopped."""
        with httpx2.Client(timeout=60) as client:
            while not self.stop.is_set():
                begun = time.monotonic()
                self.stop.wait(max(0.0, EVERY_S - (begun - self.answers[-1][0])) if self.answers else 0.0)
                begun = time.monotonic()
                files = {"file": (self.recording.name, self.recording.read_bytes())}
                data = {"response_format": "text"}
                answer = client.post(f"{self.url}/v1/audio/transcriptions", files=files, data=data)
                self.answers.append((begun, time.monotonic() - begun, answer.status_code, answer.text.strip()))


@dataclass
class Stream:
    """One live stream that speaks the same sentence again and again, at the pace of speech."""

    url: str
    recording: Path
    stop: threading.Event
    ends: list[tuple[float, float, str]] = field(default_factory=list)  # last sample sent, seconds to the text, text
    error: ConnectionClosed | None = None
    told: list[dict[str, Any]] = field(default_factory=list)  # events that are errors

    def run(self) -> None:
        """Until it is stopped, or the server closes the socket."""
        sentence = soundfile.read(self.recording, dtype="int16")[0]
        try:
            with connect(f"{self.url.replace('http', 'ws', 1)}/v1/realtime", open_timeout=60) as socket:
                socket.send(json.dumps(_SESSION))
                while not self.stop.is_set():
                    self._speak(socket, sentence)
        except ConnectionClosed as error:
            self.error = error

    def _speak(self, socket: ClientConnection, sentence: np.ndarray[Any, Any]) -> None:
        for first in range(0, len(sentence), PIECE):
            audio = base64.b64encode(sentence[first : first + PIECE].astype("<i2").tobytes()).decode()
            socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            time.sleep(PIECE / RATE)
        socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        sent = time.monotonic()
        while (event := json.loads(socket.recv(timeout=60)))["type"] != _COMPLETED:
            if event["type"] == "error":
                self.told.append(event)
        self.ends.append((sent, time.monotonic() - sent, event["transcript"]))
