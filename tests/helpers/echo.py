"""The server's transport, as it is configured, with an echo behind it: python -m tests.helpers.echo PORT

Suites for websockets expect an echo; docs/serving.md says what Autobahn's found.
"""

import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import uvicorn

from salmonrun.runtime.server import server


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """A websocket that says what it hears."""
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


def main() -> None:
    """Until it is stopped."""
    with patch.object(server, "make_app", lambda _: echo):
        config = server._uvicorn_config(SimpleNamespace())  # type: ignore[arg-type]
    config.port = int(sys.argv[1])
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
