"""WS /page/live: the text of what a visitor says, while it is said. The protocol is that of /v1/realtime."""

import asyncio
import json
from contextlib import suppress

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from salmonrun.runtime.server.api_error import ApiError
from salmonrun.runtime.server.config import PAGE
from salmonrun.runtime.server.page.door import Door
from salmonrun.runtime.server.realtime import events
from salmonrun.runtime.server.realtime.audio import pcm16
from salmonrun.runtime.server.realtime.session import Session
from salmonrun.runtime.server.realtime.socket import SEND_S, SWITCHED, hear
from salmonrun.runtime.server.realtime.turns import Turns
from salmonrun.runtime.server.service import Service
from salmonrun.runtime.server.tracing import finished

ROUTE = f"{PAGE}/live"
_TRY_AGAIN = 1013  # as of a live stream that cannot be kept


def live(service: Service, door: Door) -> APIRouter:
    """The route. Audio comes at the rate of the visitor's microphone, and the unstable tail is always told."""
    router = APIRouter()

    @router.websocket(ROUTE)
    async def connect(socket: WebSocket, rate: int) -> None:
        with service.tracing.request(socket.scope) as span:
            finished(span, "GET", ROUTE, await serve(socket, rate))

    async def serve(socket: WebSocket, rate: int) -> int:
        try:
            door.check(socket.scope)
            session = Session(service.model_names[0], format=pcm16(rate), partial=True)
            await hear(service, socket, Turns(service.engine, session))
        except ApiError as error:
            with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
                await asyncio.wait_for(_refuse(socket, error), SEND_S)
            return error.status
        return SWITCHED

    return router


async def _refuse(socket: WebSocket, error: ApiError) -> None:
    """Browsers do not show pages the answer to a handshake that failed: so it succeeds, and the reason follows."""
    await socket.accept()
    await socket.send_text(json.dumps(events.error(error)))
    await socket.close(_TRY_AGAIN)
