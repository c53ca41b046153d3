"""Connections that say nothing, or take nothing: closed after a while. Uvicorn itself waits as long as it takes."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # for a request's first line and headers to be complete
TAKE_S = 60.0  # for a client to take what is left for it, when its connection is closed


class _Impatient:
    """A transport whose `close` is not kept open for ever by a client that does not read."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Send what was written, but not for ever."""
        self._transport.close()
        if not self._closing:
            self._closing = True
            self._loop.call_later(TAKE_S, self._transport.abort)


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1, and what it is upgraded to, with limits on a client's time to say and to take something."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(_Impatient(transport, self.loop))  # type: ignore[arg-type]
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
