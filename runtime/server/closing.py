"""Websockets that a client may close in the middle of a message."""

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol


class _Connection(ServerProtocol):
    """websockets answers such a close with 1002, a fault of the client. It is none: RFC 6455, 5.4 and 5.5.1."""

    def recv_frame(self, frame: Frame) -> None:
        """What was begun is never complete: forgotten."""
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)


class ClosableProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's websockets over such connections."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        made = self.conn
        self.conn = _Connection(
            extensions=made.available_extensions, max_size=self.config.ws_max_size, logger=made.logger
        )
