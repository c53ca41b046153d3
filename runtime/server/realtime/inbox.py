"""What a client has sent and nobody has looked at yet: in order, and bounded."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

MOST_CHARACTERS = 2**21  # of events that wait: half a minute of PCM16 at 24 kHz; who sends more is read later
MOST_EVENTS = 1000
PIECE_S = 2.0  # of audio that is taken at once, at most, if it comes in pieces

APPEND = "input_audio_buffer.append"


@dataclass(frozen=True)
class Received:
    """An event of a client."""

    event: dict[str, Any]
    size: int = 0  # characters
    seconds: float = 0.0  # of audio

    @property
    def is_audio(self) -> bool:
        """Whether it brings some."""
        return bool(self.event["type"] == APPEND)


class Inbox:
    """Events of one socket."""

    def __init__(self) -> None:
        self._events: deque[Received] = deque()
        self._changed = asyncio.Condition()
        self._size = 0

    async def put(self, received: Received) -> None:
        """Leave an event, when there is room."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._size < MOST_CHARACTERS and len(self._events) < MOST_EVENTS)
            self._events.append(received)
            self._size += received.size
            self._changed.notify_all()

    async def take(self) -> list[Received]:
        """The next event; if it is audio, also what audio is there behind it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._events)
            taken = [self._events.popleft()]
            seconds = taken[0].seconds
            while taken[0].is_audio and self._events and self._events[0].is_audio:
                seconds += self._events[0].seconds
                if seconds > PIECE_S:
                    break
                taken.append(self._events.popleft())
            self._size -= sum(one.size for one in taken)
            self._changed.notify_all()
            return taken
