"""Connections that say nothing: closed after a while. Uvicorn itself waits for a request's head as long as it takes."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # for a request's first line and headers to be complete


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 with a limit on the time for a request's head."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_S, self._give_up)

    def data_received(self, data: bytes) -> None:
        """It says something."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # the head is complete, or there will be none
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._forget()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        self._deadline = None
        if self.transport.get_protocol() is self:  # else it has become a websocket
            self.transport.close()

    def _forget(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None
