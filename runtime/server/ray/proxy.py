"""What Serve's proxies add where a replica dies: a close code for its live streams.

Serve itself drops such a socket without a word, which clients cannot tell from a network that failed. Proxies load this
where `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` is `salmonrun.runtime.server.ray.proxy:middlewares`.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RESTART = 1012  # service restart, by IANA's registry: connect anew
REASON = "the replica that heard this stream is gone: open another"


def middlewares() -> list[Middleware]:
    """For Serve's proxies."""
    return [Middleware(Farewell)]


class Farewell:
    """Closes sockets that are left open by who answered them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A socket; anything else passes."""
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        passed: set[str] = set()

        async def received() -> Message:
            message = await receive()
            passed.add(message["type"])
            return message

        async def sent(message: Message) -> None:
            passed.add(message["type"])
            await send(message)

        await self._app(scope, received, sent)
        if "websocket.accept" in passed and passed.isdisjoint({"websocket.close", "websocket.disconnect"}):
            await send({"type": "websocket.close", "code": RESTART, "reason": REASON})
