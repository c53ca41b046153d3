"""A span for each item of a live stream, from where it began to be heard to its text."""

import time

from opentelemetry.context import get_current
from opentelemetry.trace import Span, Status, StatusCode

from salmonrun.runtime.server.realtime import events
from salmonrun.runtime.server.realtime.events import Event
from salmonrun.runtime.server.tracing import AUDIO_S, FIRST_CHUNK, Tracing


class ItemSpans:
    """Of one stream, whose span is the current one where this is made."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._stream = get_current()
        self._span: Span | None = None  # of the item that is heard
        self._began = 0.0  # time.perf_counter()
        self._silent = True  # whether it has no text yet

    def told(self, event: Event) -> None:
        """What the client is told says how its items are doing."""
        kind = event["type"]
        if kind == "conversation.item.added":
            self._span, self._began, self._silent = self._tracing.begin("item", self._stream), time.perf_counter(), True
        if self._span is None:
            return
        if kind == events.DELTA and self._silent:
            self._span.set_attribute(FIRST_CHUNK, time.perf_counter() - self._began)
            self._silent = False
        elif kind == events.COMPLETED:
            self._span.set_attribute(AUDIO_S, event["usage"]["seconds"])
            self.close()
        elif kind == events.FAILED:
            self._span.set_attribute("error.type", event["error"]["code"])
            self._span.set_status(Status(StatusCode.ERROR))
            self.close()
        elif kind == "conversation.item.deleted":
            self.close()

    def close(self) -> None:
        """Nothing more is told of the item."""
        if self._span:
            self._span.end()
            self._span = None
