"""Live streams, each paced as somebody speaks, and how far behind its audio each is told what was heard."""

import asyncio
import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.latency.recording import Recording

PIECE_S = 0.1  # of audio that a client sends at once
LATE_S = 1.0  # behind its audio, where a stream is not in real time: the server lets no more in then
END_S = 60.0  # for the last text, after which a stream counts as lost
_TRANSCRIPTION = "conversation.item.input_audio_transcription"
SESSION = {
    "type": "session.update",
    "session": {
        "type": "transcription",
        "audio": {"input": {"format": {"type": "audio/pcm", "rate": SAMPLE_RATE}, "turn_detection": None}},
        "include": ["item.input_audio_transcription.partial"],
    },
}


@dataclass
class Told:
    """What the clients of one run, or of several trials, were told, and when."""

    lag_s: list[float] = field(default_factory=list)  # of each update, behind the end of the audio it is about
    final_s: list[float] = field(default_factory=list)  # of each utterance, behind its last sample
    lost: int = 0  # streams that were refused or closed
    took_s: float = 0.0  # from the first sample of all to the last text
    trials: int = 1

    def add(self, again: "Told") -> None:
        """Another trial of the same."""
        self.lag_s += again.lag_s
        self.final_s += again.final_s
        self.lost += again.lost
        self.took_s += again.took_s
        self.trials += again.trials

    @property
    def real_time(self) -> bool:
        """Whether nobody was lost, and 95 of 100 updates and texts were not late."""
        late = [float(np.percentile(values, 95)) > LATE_S for values in (self.lag_s, self.final_s) if values]
        return not self.lost and bool(self.final_s) and not any(late)


def measure(url: str, streams: int, seconds: float, utterance_s: float) -> Told:
    """So many at once, each for so long; they begin one after the other within an utterance."""
    return asyncio.run(_measure(url, streams, seconds, utterance_s))


async def _measure(url: str, streams: int, seconds: float, utterance_s: float) -> Told:
    told, recording = Told(), Recording.load(None)
    begin = time.monotonic() + 0.5
    clients = [
        _Client(told, recording.cut(seconds, 3.1 * number), begin + utterance_s * number / streams, utterance_s)
        for number in range(streams)
    ]
    await asyncio.gather(*(client.run(f"{url.replace('http', 'ws', 1)}/v1/realtime") for client in clients))
    told.took_s = time.monotonic() - begin
    return told


class _Client:
    """One stream: a task speaks by the clock, another one listens."""

    def __init__(self, told: Told, pcm: F32, begin: float, utterance_s: float) -> None:
        self._told = told
        self._pcm = pcm
        self._begin = begin  # time.monotonic() of its first sample
        self._pieces = round(utterance_s / PIECE_S)  # of an utterance
        self._ended: list[float] = []  # time.monotonic() of the last sample of each utterance

    async def run(self, address: str) -> None:
        """To its last text, or until it is lost."""
        try:
            async with connect(address, open_timeout=END_S, max_size=None) as socket:
                await socket.send(json.dumps(SESSION))
                listening = asyncio.create_task(self._listen(socket))
                await self._speak(socket)
                await asyncio.wait_for(listening, END_S)
        except (ConnectionClosed, InvalidStatus, TimeoutError, OSError):
            self._told.lost += 1

    async def _speak(self, socket: ClientConnection) -> None:
        size = round(PIECE_S * SAMPLE_RATE)
        pieces = np.array_split(self._pcm, len(self._pcm) // size)
        for number, piece in enumerate(pieces, start=1):
            spoken = self._begin + number * PIECE_S  # a piece can be sent when its last sample was said
            await asyncio.sleep(spoken - time.monotonic())
            data = base64.b64encode((piece * 32767).astype("<i2").tobytes()).decode()
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": data}))
            if number % self._pieces == 0 or number == len(pieces):
                self._ended.append(spoken)
                await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))

    async def _listen(self, socket: ClientConnection) -> None:
        expected, finals = -(-round(len(self._pcm) / SAMPLE_RATE / PIECE_S) // self._pieces), 0
        while finals < expected:
            event: dict[str, Any] = json.loads(await socket.recv())
            now = time.monotonic()
            if event["type"] == f"{_TRANSCRIPTION}.partial":
                self._told.lag_s.append(now - self._begin - event["audio_end_ms"] / 1000)
            elif event["type"] == f"{_TRANSCRIPTION}.completed":
                self._told.final_s.append(now - self._ended[finals])
                finals += 1
            elif event["type"] in ("error", f"{_TRANSCRIPTION}.failed"):
                raise TimeoutError(event)
